"""When a run is evaluated, which weights are the best, and what a process that was killed leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastcyclegan.checkpoints.run_files import BEST
from fastcyclegan.checkpoints.weight_sets import read_sets, write_set
from fastcyclegan.data.pixels import NoNumbersError
from fastcyclegan.errors import StoppedError
from fastcyclegan.settings.evaluation import EvaluationConfig
from fastcyclegan.training import evaluations
from fastcyclegan.training.evaluation_history import History
from fastcyclegan.training.evaluations import FIRST, Evaluations

NAMES = {"G": "G"}


class Measuring:
    """Stands for RunEvaluation: the next value is given in advance, and takes ``seconds`` of ``clock``."""

    def __init__(self, protocol: int = 1, judge: str = "eval_l1") -> None:
        self.protocol, self.judge = protocol, judge
        self.value: float | Exception = 1.0
        self.taking: Callable[[], object] = lambda: None

    def empty_history(self) -> History:
        return History("l1", self.judge, {"AtoB": {"images": self.protocol}})

    def measure(self, engine: Any, stopping: Any) -> dict[str, Any]:
        self.taking()
        if isinstance(self.value, Exception):
            raise self.value
        return {self.judge: self.value, "eval_psnr": 20.0}


class Clock:
    """Stands for the module time."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(evaluations, "time", clock)
    return clock


class Made:
    """Evaluations of a run that does not exist, and the lines that they log."""

    def __init__(
        self, measuring: Measuring | None = None, extra: dict[str, Any] | None = None, **options: Any
    ) -> None:
        self.lines: list[str] = []
        self.measuring = Measuring() if measuring is None else measuring
        config = EvaluationConfig(**{"eval_metric": "l1", **options})
        self.run = SimpleNamespace(
            config=SimpleNamespace(evaluation=config),
            iteration=0,
            engine=None,
            extra={} if extra is None else extra,
        )
        self.of: Any = Evaluations(self.run, self.measuring, self.lines.append)  # type: ignore[arg-type]

    def at(self, iteration: int, value: float | Exception) -> bool:
        """Evaluate with this result after ``iteration``. Return whether it is the best."""
        self.run.iteration, self.measuring.value = iteration, value
        with self.of.timed():
            _, is_best = self.of.evaluate(1)
        return bool(is_best)

    def keep(self, folder: Path) -> None:
        """Write the best weights, as the trainer does."""
        snapshot = {"iteration": self.of.history.best["iteration"], "nets": {"G": {"w": torch.ones(2)}}}
        write_set(folder, "best", snapshot, NAMES, {BEST: self.of.best_file()})


# --- When ---------------------------------------------------------------------------------------------------


def test_every_n_epochs_are_the_last_iterations_of_these_epochs() -> None:
    made, due = Made(eval_every="2"), []
    for iteration in range(1, 13):  # four epochs of three iterations
        made.run.iteration = iteration
        if made.of.due((iteration + 2) // 3, ends_epoch=iteration % 3 == 0):
            due.append(iteration)
    assert due == [6, 12]
    assert not made.of.is_due_at_the_end


@pytest.mark.parametrize(
    ("every", "at", "expected"),
    [
        ("2", 0, ""),
        ("5", 0, "after iteration 12: --eval_every counts epochs of 3 iterations"),
        ("12it", 0, ""),
        ("12it", 6, ""),
        ("13it", 0, "after iteration 12: --eval_every counts iterations"),
        ("4", 12, ""),
        (None, 0, ""),
    ],
)
def test_a_run_that_ends_before_its_first_evaluation_says_so(
    every: str | None, at: int, expected: str
) -> None:
    made = Made(eval_every=every)
    made.run.iteration, made.run.last = at, 12
    made.run.plan = SimpleNamespace(iterations_per_epoch=3)
    warning = made.of.warning()
    assert warning.endswith(expected)
    assert bool(warning) == bool(expected)


def test_every_n_iterations() -> None:
    made, due = Made(eval_every="5it"), []
    for iteration in range(1, 13):
        made.run.iteration = iteration
        if made.of.due(1, ends_epoch=False):
            due.append(iteration)
            made.at(iteration, 1.0)
            assert not made.of.due(1, ends_epoch=False), "the same weights again"
    assert due == [5, 10]


@pytest.mark.parametrize("seconds", [0.2, 7.0])
@pytest.mark.parametrize("fails", [False, True])
def test_without_a_number_evaluations_take_a_share_of_the_time(
    clock: Clock, seconds: float, fails: bool
) -> None:
    made, spent, started = Made(eval_share=0.1), 0.0, clock.now
    made.measuring.taking = lambda: clock.sleep(seconds)
    for iteration in range(1, 3000):
        clock.sleep(0.25)
        made.run.iteration = iteration
        if made.of.due(1, ends_epoch=False):
            assert clock.now - started >= FIRST
            try:
                made.at(iteration, NoNumbersError("none") if fails else 1.0)
            except NoNumbersError:
                assert fails
            spent += seconds
            assert spent <= max(seconds, 0.1 * (clock.now - started) + 1e-6)
    assert spent > 0.08 * (clock.now - started)


def test_what_follows_the_measurement_counts_as_well(clock: Clock) -> None:
    """Drawing the curve takes longer than to measure a few small images."""
    made = Made(eval_share=0.1)
    clock.sleep(FIRST)
    assert made.of.due(1, ends_epoch=False)
    with made.of.timed():
        made.of.evaluate(1)
        clock.sleep(30)
    made.run.iteration = 2
    clock.sleep(400)
    assert not made.of.due(1, ends_epoch=False)


def test_the_last_weights_are_evaluated_unless_they_were() -> None:
    made = Made()
    made.run.iteration = 7
    assert made.of.is_due_at_the_end
    made.at(7, 1.0)
    assert not made.of.is_due_at_the_end


def test_a_request_to_stop_records_nothing() -> None:
    made = Made()
    with pytest.raises(StoppedError):
        made.at(1, StoppedError())
    assert made.of.history.records == []


# --- Which is the best --------------------------------------------------------------------------------------


def test_each_evaluation_is_logged_with_the_best_one() -> None:
    made = Made()
    assert [made.at(n, value) for n, value in ((10, 0.5), (20, 0.25), (30, 0.75))] == [True, True, False]
    took = "; took 0.0 s"
    assert made.lines == [
        f"evaluated iteration 10: l1 0.5; the best so far{took}",
        f"evaluated iteration 20: l1 0.25; the best so far{took}",
        f"evaluated iteration 30: l1 0.75; best 0.25 at iteration 20{took}",
    ]


def test_patience_counts_evaluations_that_brought_nothing() -> None:
    made = Made(patience=2)
    exhausted = []
    for n, value in enumerate((0.5, 0.6, 0.4, 0.4, 0.5), start=1):
        made.at(n, value)
        exhausted.append(made.of.is_exhausted)
    assert exhausted == [False, False, False, False, True]
    assert not Made().of.is_exhausted


# --- What earlier processes left ----------------------------------------------------------------------------


def continued(made: Made, folder: Path, measuring: Measuring | None = None) -> Made:
    """Return the evaluations of the process that resumes from the state of ``made``."""
    again = Made(measuring, {"evaluations": made.of.state()}, patience=2)
    again.of.take_over(folder, None)
    return again


def test_a_resumed_run_has_the_same_history(tmp_path: Path) -> None:
    made = Made()
    made.at(10, 0.5)
    made.keep(tmp_path)
    made.at(20, 0.6)
    made.at(30, 0.7)
    again = continued(made, tmp_path)
    assert again.of.history == made.of.history
    assert again.of.is_exhausted
    assert again.lines == []


def test_weights_that_were_kept_after_the_state_are_the_best(tmp_path: Path) -> None:
    made = Made()
    made.at(10, 0.5)
    state = Made(extra={"evaluations": made.of.state()})
    made.at(20, 0.25)
    made.keep(tmp_path)
    again = continued(state, tmp_path)
    assert again.lines == []
    assert again.of.history.best["iteration"] == 20
    assert again.of.history.since_best == 0
    assert not again.at(20, 0.25)  # the same weights
    assert not again.at(30, 0.3)
    assert again.of.history.since_best == 1


def _half_a_set(folder: Path) -> None:
    (folder / "best_net_G.pth").write_bytes(b"torn")


def _of_another_iteration(folder: Path) -> None:
    """Killed after the weights of iteration 20, and before best.json."""
    sets = read_sets(folder)
    sets["best"]["iteration"] = 20
    (folder / "weights.json").write_text(json.dumps(sets))


def _damaged(folder: Path) -> None:
    (folder / BEST).write_text('{"judge": "eval_l1"')


def _other_values(folder: Path) -> None:
    saved = json.loads((folder / BEST).read_text())
    (folder / BEST).write_text(json.dumps({**saved, "record": {"iteration": 10}}))


def _missing(folder: Path) -> None:
    (folder / BEST).unlink()


@pytest.mark.parametrize("damage", [_half_a_set, _of_another_iteration, _damaged, _other_values, _missing])
def test_without_whole_files_the_best_is_chosen_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    made = Made()
    made.at(10, 0.5)
    made.keep(tmp_path)
    damage(tmp_path)
    again = continued(made, tmp_path)
    assert "so the best is chosen anew" in again.lines[-1]
    assert "(iteration 10) are not in" in again.lines[-1]
    assert [line for line in again.lines[:-1] if "damaged" not in line] == []
    assert again.of.history.records == made.of.history.records
    assert not list(tmp_path.glob("replaced*"))
    assert again.at(20, 0.75)


@pytest.mark.parametrize(
    ("measuring", "reason"),
    [
        (Measuring(protocol=2), "AtoB: images is 1 and 2"),
        (Measuring(judge="eval_l1_ema"), "eval_l1 judged, and now eval_l1_ema"),
    ],
)
def test_another_protocol_or_judge_starts_anew_and_moves_the_best(
    tmp_path: Path, measuring: Measuring, reason: str
) -> None:
    made = Made()
    made.at(10, 0.5)
    made.keep(tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.glob("best*")}
    assert len(kept) == 2
    (tmp_path / "replaced-best").mkdir()  # of an earlier change
    again = continued(made, tmp_path, measuring)
    assert again.lines == [
        "the evaluations so far cannot be compared with those from now on, so the best weights are chosen"
        f" anew ({reason})",
        f"the best weights of earlier evaluations are now in {tmp_path / 'replaced-best-2'}",
    ]
    assert again.of.history == again.measuring.empty_history()
    moved = tmp_path / "replaced-best-2"
    assert {file.name: file.read_bytes() for file in moved.iterdir()} == kept
    assert not list(tmp_path.glob("best*"))
    assert "best" not in read_sets(tmp_path)
    # It is not said again.
    third = Made(measuring, {"evaluations": again.of.state()})
    third.of.take_over(tmp_path, None)
    assert third.lines == []


def test_a_move_that_was_interrupted_is_completed(tmp_path: Path) -> None:
    made = Made()
    made.at(10, 0.5)
    made.keep(tmp_path)
    (tmp_path / "weights.json").write_text("{}")  # the first step
    continued(made, tmp_path, Measuring(protocol=2))
    assert {file.name for file in (tmp_path / "replaced-best").iterdir()} == {"best_net_G.pth", BEST}
    assert not list(tmp_path.glob("best*"))


def test_a_run_that_goes_back_moves_what_cannot_be_compared_to_its_folder(tmp_path: Path) -> None:
    made = Made()
    made.at(10, 0.5)
    made.keep(tmp_path)
    again = Made(Measuring(protocol=2))
    again.of.take_over(tmp_path, tmp_path / "replaced-after-iteration-20")
    assert (tmp_path / "replaced-after-iteration-20" / BEST).exists()


def test_other_versions_continue_the_history(tmp_path: Path) -> None:
    made = Made()
    made.of.history.protocol["AtoB"]["versions"] = {"torch": "2.0"}
    made.at(10, 0.5)
    made.keep(tmp_path)
    again = continued(made, tmp_path)
    assert again.lines == []
    assert again.of.history.best == made.of.history.best
    assert "versions" not in again.of.history.protocol["AtoB"]  # the current ones


def test_the_file_about_the_best_weights(tmp_path: Path) -> None:
    made = Made()
    made.at(10, 0.5)
    made.at(20, 0.75)
    assert json.loads(made.of.best_file()) == {
        "iteration": 10,
        "epoch": 1,
        "metric": "l1",
        "value": 0.5,
        "judge": "eval_l1",
        "record": {"iteration": 10, "epoch": 1, "eval_l1": 0.5, "eval_psnr": 20.0},
        "protocol": {"AtoB": {"images": 1}},
    }
