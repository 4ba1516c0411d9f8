"""Whole runs that evaluate their weights: their files, their bits, and what interruptions leave."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastcyclegan import CycleGAN, cli
from fastcyclegan.cli import parse_train
from fastcyclegan.console import QuietConsole
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training import run_report
from fastcyclegan.training.evaluations import Evaluations
from fastcyclegan.training.run_evaluation import RunEvaluation
from fastcyclegan.training.run_report import Report
from fastcyclegan.training.state_writer import StateWriter
from fastcyclegan.training.trainer import Trainer, train
from tests.conftest import write_images
from tests.recipes.states import assert_same, draw, state_of
from tests.training.crashes import Crash, distinct, read_points
from tests.training.evaluated import (
    PAIRS,
    best_of,
    evaluated,
    evaluations_in,
    feature_file,
    flags,
    history_of,
    losses_in,
    resumed,
)
from tests.training.forked_runs import ForkedRuns, shared_server
from tests.training.interrupted import next_command
from tests.training.test_tracker import TINY, Recorder

RESUME = ["--continue_train", "--name", "r", "--checkpoints_dir"]
EVERY_2 = [*PAIRS, "--eval_every", "2it"]


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty files in place of curves, because drawing takes most of the time of a small run."""
    monkeypatch.setattr(run_report, "draw_evaluations", lambda history, path: path.touch())
    monkeypatch.setattr(run_report, "draw_curves", lambda records, panels, path: path.touch())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of the fixture ``dataset``."""
    root = tmp_path_factory.mktemp("images") / "photos"
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_images(root / name, count, seed=seed)
    return root


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four iterations that was not interrupted, with two evaluations."""
    runs = tmp_path_factory.mktemp("whole")
    evaluated(photos, runs, "r", "--max_iters", "4", *EVERY_2)
    return runs / "r"


def weights(run: Path, label: str) -> dict[str, Any]:
    return {file.name.removeprefix(label): load_tensors(file) for file in run.glob(f"{label}_net_*.pth")}


# --- The bits of training -----------------------------------------------------------------------------------


def assert_same_training(one: Path, other: Path) -> None:
    assert_same(state_of(one), state_of(other))
    assert losses_in(one) == losses_in(other)
    assert weights(one, "latest").keys() == weights(other, "latest").keys()
    assert_same(weights(one, "latest"), weights(other, "latest"))


@pytest.mark.parametrize("more", [[], ["--ema", "0.9", "--norm", "batch"]], ids=str)
def test_evaluations_change_no_bit_of_the_training(dataset: Path, tmp_path: Path, more: list[str]) -> None:
    features = ["--eval_features", str(feature_file(tmp_path, random=True))]
    evaluated(dataset, tmp_path, "without", "--max_iters", "6", *more)
    evaluated(dataset, tmp_path, "pairs", "--max_iters", "6", *EVERY_2, *more)
    evaluated(dataset, tmp_path, "sets", "--max_iters", "6", "--eval_every", "3it", *features, *more)
    assert_same_training(tmp_path / "without", tmp_path / "pairs")
    assert_same_training(tmp_path / "without", tmp_path / "sets")


PIX2PIX = (
    "--model pix2pix --netG unet_32 --ngf 2 --netD pixel --ndf 2 --load_size 36 --crop_size 32 --device cpu"
    " --loader folder --num_threads 0 --print_freq 1 --max_iters 4".split()
)


def test_nor_with_pairs_and_dropout(tmp_path: Path) -> None:
    for n in range(4):
        draw(tmp_path / "pairs" / ("train" if n < 2 else "test") / f"{n}.png", 48, n)
    command = [*PIX2PIX, "--checkpoints_dir", str(tmp_path), "--dataroot", str(tmp_path / "pairs"), "--name"]
    train(parse_train([*command, "without"]), QuietConsole())
    trainer = train(parse_train([*command, "with", "--eval_every", "2it", "--ema", "0.9"]), QuietConsole())
    assert not trainer.run.config.model.no_dropout  # type: ignore[attr-defined]
    state = state_of(tmp_path / "with")
    del state["ema"]
    assert_same(state, state_of(tmp_path / "without"))
    assert losses_in(tmp_path / "with") == losses_in(tmp_path / "without")
    assert best_of(tmp_path / "with")["judge"] == "eval_l1_ema"  # the default for pairs; of one direction


def test_nor_on_the_built_in_images(tmp_path: Path) -> None:
    small = ["--ngf", "2", "--ndf", "2", "--netG", "resnet_1blocks", "--netD", "pixel", "--print_freq", "1"]
    command = [*small, "--device", "cpu", "--loader", "folder", "--num_threads", "0", "--max_iters", "2"]
    where = ["--checkpoints_dir", str(tmp_path), "--name"]
    train(parse_train([*command, *where, "without"]), QuietConsole())
    train(parse_train([*command, *where, "with", "--eval_every", "1it"]), QuietConsole())
    assert_same_training(tmp_path / "without", tmp_path / "with")
    assert [record["iteration"] for record in evaluations_in(tmp_path / "with")] == [1, 2]
    assert best_of(tmp_path / "with")["metric"] == "l1"


# --- What is written ----------------------------------------------------------------------------------------


def test_the_files_of_an_evaluated_run(dataset: Path, tmp_path: Path) -> None:
    features = ["--eval_metric", "kid", "--eval_features", str(feature_file(tmp_path))]
    ticks: list[dict[str, Any]] = []
    config = parse_train(
        flags(dataset, tmp_path, "r", "--max_iters", "5", "--eval_every", "2it", "--ema", "0.9", *features)
    )
    train(config, QuietConsole(), on_tick=lambda trainer, record: ticks.append(record))
    run = tmp_path / "r"
    records, history = evaluations_in(run), history_of(run)
    assert [record["iteration"] for record in records] == [2, 4]
    protocols = [record.pop("eval_protocol") for record in records]
    assert protocols == [history.protocol, history.protocol]
    assert history.protocol.keys() == {"AtoB", "BtoA"}
    assert records == history.records
    assert records[0]["eval_kid_ema"].keys() == {"mean", "std"}
    assert [tick for tick in ticks if "eval_kid" in tick] == records
    best = best_of(run)
    assert history.judge == best["judge"] == "eval_kid_ema"
    assert best["record"] == history.best == min(records, key=lambda record: record["eval_kid_ema"]["mean"])
    assert best["value"] == best["record"]["eval_kid_ema"]
    assert best["protocol"] == history.protocol
    names = {f"best_net_{net}.pth" for net in ("G_A", "G_B", "D_A", "D_B", "G_A_ema", "G_B_ema")}
    assert {file.name for file in run.glob("best_net_*")} == names
    page = (run / "index.html").read_text()
    assert '<img src="evaluations.png"' in page
    assert "<th>best</th>" in page
    assert (run / "evaluations.png").exists()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curve = events.Scalars("eval/kid_AtoB")
    assert [(point.step, pytest.approx(point.value)) for point in curve] == [
        (record["iteration"], record["eval_kid_AtoB"]["mean"]) for record in records
    ]


def test_the_best_weights_are_those_of_the_best_evaluation(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.25, 0.75])
    monkeypatch.setattr(RunEvaluation, "measure", lambda *_: {"eval_l1": next(values)})
    evaluated(dataset, tmp_path, "r", "--max_iters", "6", *EVERY_2)
    evaluated(dataset, tmp_path, "short", "--max_iters", "4")
    assert best_of(tmp_path / "r")["iteration"] == 4
    assert_same(weights(tmp_path / "r", "best"), weights(tmp_path / "short", "latest"))


def test_trackers_and_callbacks_get_evaluations_without_a_folder(dataset: Path) -> None:
    tracker, model = Recorder(), CycleGAN(**TINY)
    records = model.fit(dataset, max_iters=4, trackers=[tracker], eval_every="2it", eval_metric="l1")
    assert [record["iteration"] for record in records if "eval_l1" in record] == [2, 4]
    assert tracker.scalars[4].keys() == {
        f"eval/{name}{end}" for name in ("l1", "psnr", "ssim") for end in ("", "_AtoB", "_BtoA")
    }
    # The next call continues the history.
    records = model.fit(max_iters=6)
    trainer = model._trainer
    assert trainer is not None
    assert trainer.evaluations is not None
    assert [record["iteration"] for record in trainer.evaluations.history.records] == [2, 4, 6]


def test_every_n_epochs(dataset: Path, tmp_path: Path) -> None:
    evaluated(dataset, tmp_path, "r", "--max_iters", "22", *PAIRS, "--eval_every", "2")
    assert [record["iteration"] for record in evaluations_in(tmp_path / "r")] == [10, 20]


def test_without_a_number_the_last_weights_are_evaluated(dataset: Path, tmp_path: Path) -> None:
    evaluated(dataset, tmp_path, "r", "--max_iters", "3", *PAIRS)
    assert [record["iteration"] for record in evaluations_in(tmp_path / "r")] == [3]
    assert best_of(tmp_path / "r")["iteration"] == 3
    assert history_of(tmp_path / "r").records[-1]["iteration"] == 3


def test_patience_ends_the_run_with_its_files_saved(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([0.5, 0.25, 0.3, 0.35, 0.4, 0.45])
    monkeypatch.setattr(RunEvaluation, "measure", lambda *_: {"eval_l1": next(values)})
    command = flags(dataset, tmp_path, "r", "--max_iters", "20", *EVERY_2, "--patience", "2")
    assert cli.train(command) == 0
    output = capsys.readouterr().out
    assert "ended after iteration 8 of 20: 2 evaluations in a row were no better than the best one" in output
    assert re.search(r"best: l1 0.25 at iteration 4, kept as .*best_net_\*\.pth", output)
    assert state_of(tmp_path / "r")["iteration"] == 8
    again = [*RESUME, str(tmp_path)]
    assert cli.train(again) == 0
    assert "ended after iteration 8 of 20" in capsys.readouterr().out
    assert cli.train([*again, "--patience", "3"]) == 0
    assert "ended after iteration 10 of 20: 3 evaluations" in capsys.readouterr().out


# --- The best weights are used ------------------------------------------------------------------------------


def test_the_best_weights_translate_and_start_a_run(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.25, 0.5])
    monkeypatch.setattr(RunEvaluation, "measure", lambda *_: {"eval_l1": next(values)})
    evaluated(dataset, tmp_path, "r", "--max_iters", "4", *EVERY_2)
    run, best = tmp_path / "r", weights(tmp_path / "r", "best")
    for epoch in ("best", "latest"):
        more = ["--epoch", epoch, "--output", str(tmp_path / epoch), "--device", "cpu"]
        assert cli.translate(["--input", str(dataset / "testA"), "--weights", str(run), *more]) == 0
    images = [(tmp_path / epoch / "000.png").read_bytes() for epoch in ("best", "latest")]
    assert images[0] != images[1]
    trainer = train(
        parse_train([*RESUME, str(tmp_path), "--epoch", "best"]),
        QuietConsole(),
        on_start=lambda trainer: trainer.stop_after(0),
    )
    for name, official in trainer.run.engine.recipe.official_names.items():
        assert_same(trainer.run.engine.nets[name].state_dict(), best[f"_net_{official}.pth"])
    replaced = run / "replaced-after-iteration-0"
    assert_same(weights(replaced, "best"), best)
    assert best_of(replaced)["iteration"] == 2
    assert not (run / "best.json").exists()


def test_going_back_moves_a_later_best_away(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.25, 0.375, 0.75])
    monkeypatch.setattr(RunEvaluation, "measure", lambda *_: {"eval_l1": next(values)})
    # A save that is due waits for a writer that is busy, here with the best weights of iteration 2.
    monkeypatch.setattr(StateWriter, "busy", False)
    more = ["--save_latest_freq", "3", "--eval_every", "2it", *PAIRS]
    evaluated(dataset, tmp_path, "r", "--max_iters", "5", *more)
    run = tmp_path / "r"
    assert best_of(run)["iteration"] == 4
    assert load_tensors(run / "previous_state.pt")["iteration"] == 3
    resumed(tmp_path, "r", "--epoch", "previous", "--max_iters", "6")
    replaced = run / "replaced-after-iteration-3"
    assert best_of(replaced)["iteration"] == 4
    assert weights(replaced, "best")
    # The best one until then, of iteration 2, was overwritten by that of iteration 4.
    assert best_of(run)["iteration"] == 4
    assert best_of(run)["value"] == 0.375
    assert [record["iteration"] for record in evaluations_in(run)] == [2, 4, 6]
    assert [record["iteration"] for record in evaluations_in(replaced)] == [4]


# --- Resuming -----------------------------------------------------------------------------------------------


def comparable(run: Path) -> dict[str, Any]:
    """Return what evaluations leave in the files of a run."""
    return {
        "history": history_of(run),
        "best": best_of(run),
        "records": evaluations_in(run),
        "weights": {
            name: {key: value.tolist() for key, value in net.items()}
            for name, net in weights(run, "best").items()
        },
    }


def test_a_resumed_run_equals_an_uninterrupted_one(dataset: Path, tmp_path: Path) -> None:
    more = [*PAIRS, "--eval_every", "3it", "--ema", "0.9"]
    evaluated(dataset, tmp_path, "whole", "--max_iters", "8", *more)
    evaluated(dataset, tmp_path, "r", "--max_iters", "4", *more)
    resumed(tmp_path, "r", "--max_iters", "8")
    assert_same_training(tmp_path / "whole", tmp_path / "r")
    assert comparable(tmp_path / "r") == comparable(tmp_path / "whole")


def _stopped(trainer: Trainer) -> None:
    trainer.stop_after(signal.SIGINT)


def test_an_evaluation_that_is_interrupted_is_made_when_the_run_resumes(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during an evaluation saves the state at once."""
    measure, trainers, calls = RunEvaluation.measure, [], []

    def interrupted(self: RunEvaluation, engine: Any, stopping: Any) -> Any:
        calls.append(engine)
        if len(calls) == 1:
            trainers[0].stop_after(signal.SIGINT)
        return measure(self, engine, stopping)

    monkeypatch.setattr(RunEvaluation, "measure", interrupted)
    config = parse_train(flags(photos, tmp_path, "r", "--max_iters", "4", *EVERY_2))
    trainer = train(config, QuietConsole(), on_start=trainers.append)
    assert trainer.stop == signal.SIGINT
    assert state_of(tmp_path / "r")["iteration"] == 2
    assert history_of(tmp_path / "r").records == []
    resumed(tmp_path, "r")
    assert comparable(tmp_path / "r") == comparable(whole)


def test_an_error_before_an_evaluation_does_not_leave_it_out(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved after an iteration whose weights were not evaluated yet."""
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_log", _failing(Trainer._log, 4))
        with pytest.raises(UserError, match="saved after iteration 4"):
            evaluated(photos, tmp_path, "r", "--max_iters", "4", *EVERY_2)
    assert [record["iteration"] for record in history_of(tmp_path / "r").records] == [2]
    resumed(tmp_path, "r")  # nothing is left to train
    assert comparable(tmp_path / "r") == comparable(whole)
    with monkeypatch.context() as patched:
        patched.setattr(Evaluations, "evaluate", _unreadable)
        with pytest.raises(UserError, match=r"x: cannot be read \(saved after iteration 3"):
            evaluated(photos, tmp_path, "last", "--max_iters", "3", *PAIRS)
    resumed(tmp_path, "last")
    assert [record["iteration"] for record in evaluations_in(tmp_path / "last")] == [3]
    assert history_of(tmp_path / "last").best is not None


def _failing(original: Any, iteration: int) -> Any:
    def log(self: Trainer, epoch: int) -> None:
        original(self, epoch)
        if self.run.iteration == iteration:
            raise OSError(28, "No space left on device", "stats.jsonl")

    return log


def _unreadable(*arguments: Any) -> Any:
    raise UserError("x: cannot be read")


def test_another_protocol_starts_anew(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "r")
    again = [*RESUME, str(tmp_path), "--max_iters", "6"]
    assert cli.train([*again, "--eval_metric", "psnr"]) == 0
    output = capsys.readouterr().out
    assert "the best weights are chosen anew (eval_l1 judged, and now eval_psnr)" in output
    assert f"the best weights of earlier evaluations are now in {tmp_path / 'r' / 'replaced-best'}" in output
    assert best_of(tmp_path / "r" / "replaced-best")["metric"] == "l1"
    assert best_of(tmp_path / "r")["metric"] == "psnr"
    assert [record["iteration"] for record in evaluations_in(tmp_path / "r")] == [2, 4, 6]
    assert [record["iteration"] for record in history_of(tmp_path / "r").records] == [6]


def test_a_run_without_evaluations_keeps_their_history(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "r")
    resumed(tmp_path, "r", "--max_iters", "5", "--eval_every", "None", "--eval_metric", "None")
    assert history_of(tmp_path / "r") == history_of(whole)
    resumed(tmp_path, "r", "--max_iters", "6", *EVERY_2)
    assert [record["iteration"] for record in history_of(tmp_path / "r").records] == [2, 4, 6]


def test_a_run_that_was_killed_before_its_first_state_starts_again(whole: Path, tmp_path: Path) -> None:
    """Its best weights are there already. They stay, because the run makes the same ones again."""
    shutil.copytree(whole, tmp_path / "r")
    for file in (*(tmp_path / "r").glob("latest*"), tmp_path / "r" / "state.pt"):
        file.unlink()
    resumed(tmp_path, "r")
    assert comparable(tmp_path / "r") == comparable(whole)
    assert not list((tmp_path / "r").glob("replaced*"))


# --- What goes wrong ----------------------------------------------------------------------------------------


def test_weights_that_give_no_numbers_end_the_run_as_without_evaluations(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(trainer: Trainer) -> None:
        with torch.no_grad():
            for p in trainer.run.engine.nets["G_AB"].parameters():
                p.fill_(torch.nan)

    config = parse_train(
        flags(
            dataset, tmp_path, "r", "--max_iters", "4", *PAIRS, "--eval_every", "1it", "--print_freq", "100"
        )
    )
    with pytest.raises(UserError, match=r"loss \w+ is nan at iteration 1"):
        train(config, QuietConsole(), on_start=begin)
    assert not list((tmp_path / "r").glob("best*"))


def test_images_without_numbers_are_logged_and_training_goes_on(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastcyclegan.training.run_evaluation.to_pixels", _no_numbers)
    assert cli.train(flags(dataset, tmp_path, "r", "--max_iters", "2", *EVERY_2)) == 0
    line = (
        "the networks give no numbers for the held-out images after iteration 2, so they were not evaluated"
    )
    assert line in capsys.readouterr().out
    assert history_of(tmp_path / "r").records == []


def _no_numbers(images: Any) -> Any:
    from fastcyclegan.data.pixels import NoNumbersError

    raise NoNumbersError("none")


def test_a_full_disk_while_the_curve_is_drawn_loses_nothing(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the records are not written: the best weights are being written meanwhile, in another thread."""
    add = Report.add_evaluations

    def full(stream: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def add_evaluations(self: Report, history: Any) -> None:
        if history.records:
            with monkeypatch.context() as disk:
                disk.setattr(run_report, "append", full)
                add(self, history)

    with monkeypatch.context() as patched:
        patched.setattr(Report, "add_evaluations", add_evaluations)
        with pytest.raises(UserError, match=r"cannot write .*stats\.jsonl.*\(saved after iteration 2;"):
            evaluated(photos, tmp_path, "r", "--max_iters", "4", *EVERY_2)
    resumed(tmp_path, "r")
    assert comparable(tmp_path / "r") == comparable(whole)


def test_a_tracker_that_fails_loses_no_evaluation(dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    tracker = _FailsAtEvaluations()
    more: dict[str, Any] = {
        "folder": tmp_path / "r",
        "eval_every": "2it",
        "eval_metric": "l1",
        "max_iters": 4,
    }
    with pytest.raises(RuntimeError, match="tracker"):
        model.fit(dataset, trackers=[tracker], **more)
    assert [record["iteration"] for record in history_of(tmp_path / "r").records] == [2]
    assert best_of(tmp_path / "r")["iteration"] == 2


class _FailsAtEvaluations(Recorder):
    def add_scalars(self, iteration: int, scalars: Any) -> None:
        if "eval/l1" in scalars:
            raise RuntimeError("tracker")


# --- Killed between any two steps ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ForkedRuns:
    return shared_server(tmp_path_factory.getbasetemp())


class Killed:
    """Runs of one command that are killed, or whose disk fails, at a call that changes a file."""

    def __init__(self, server: ForkedRuns, dataset: Path, folder: Path) -> None:
        self.server, self.folder = server, folder
        more = ["--save_latest_freq", "3", "--display_freq", "100", "--max_iters", "5"]
        self.command = lambda runs: flags(dataset, runs, "r", *EVERY_2, *more)
        self.points = self._points(folder / "whole")
        self.whole = folder / "whole" / "r"

    def _points(self, runs: Path) -> list[Any]:
        report = self.folder / "report"
        process = self.server.run(
            self.command(runs), {"runs": str(runs), "report": str(report), "crash": None}
        )
        assert process.code == 0, process.output
        points = read_points(report)
        report.unlink()
        return points

    def problem(self, crash: Crash) -> str:
        """Return how a run that fails and is resumed differs from an uninterrupted one, or ""."""
        runs, report = self.folder / "runs", self.folder / "report"
        watch = {"runs": str(runs), "report": str(report), "crash": dataclasses.asdict(crash)}
        try:
            process = self.server.run(self.command(runs), watch)
            assert crash.point in read_points(report)
            if process.code != (2 if crash.action == "error" else 137):
                return f"exit code {process.code}: {process.output}"
            process = self.server.run(next_command(runs / "r", self.command(runs)))
            if process.code != 0:
                return f"cannot be resumed: {process.output}"
            if comparable(runs / "r") != comparable(self.whole):
                return "the evaluations differ"
            names = [
                {file.name for file in run.iterdir()} - {"previous_state.pt"}
                for run in (runs / "r", self.whole)
            ]
            return "" if names[0] == names[1] else f"files: {names[0] ^ names[1]}"
        finally:
            shutil.rmtree(runs, ignore_errors=True)
            report.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def killed(server: ForkedRuns, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return Killed(server, photos, tmp_path_factory.mktemp("killed"))


ABOUT_BEST = ("best_net_", "best.json", "weights.json", "state.pt", "evaluations.png")


def crashes(killed: Killed, *, all_of_them: bool) -> list[Crash]:
    """Return kills before and after each file about the best weights takes the place of an older one."""
    points = [
        point
        for point in killed.points
        if point.kind == "rename" and any(part in point.path for part in ABOUT_BEST)
    ]
    found = [Crash(action, point) for point in points for action in ("kill", "killed after")]
    if all_of_them:
        writes = [
            point for point in distinct(killed.points) if point.kind == "write" and "best" in point.path
        ]
        return [*found, *(Crash("error", point, errno.ENOSPC) for point in writes)]
    some = (("kill", "r/best_net_D_B.pth"), ("kill", "r/best.json"), ("killed after", "r/best.json"))
    return [each for each in found if each.point.count == 2 and (each.action, each.point.path) in some]


@pytest.mark.skipif(sys.platform != "linux", reason="uses pidfd and /proc, which are Linux only")
@pytest.mark.parametrize(
    "all_of_them", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_run_killed_between_two_steps_has_the_same_best(killed: Killed, all_of_them: bool) -> None:
    problems = {str(crash): killed.problem(crash) for crash in crashes(killed, all_of_them=all_of_them)}
    assert problems
    assert {crash: problem for crash, problem in problems.items() if problem} == {}


@pytest.mark.slow
def test_a_run_on_the_built_in_images_ends_by_patience(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The curve falls, and the run ends when it does not fall any more."""
    command = ["--device", "cpu", "--checkpoints_dir", str(tmp_path), "--name", "r", "--print_freq", "10"]
    assert cli.train([*command, "--eval_every", "20it", "--patience", "6"]) == 0
    output = capsys.readouterr().out
    records = evaluations_in(tmp_path / "r")
    values = [record["eval_l1"] for record in records]
    print([f"{value:.4f}" for value in values])
    assert min(values) < values[0] / 2
    best, last = records[values.index(min(values))], records[-1]
    assert best_of(tmp_path / "r")["iteration"] == best["iteration"]
    assert last["iteration"] == best["iteration"] + 6 * 20
    assert f"ended after iteration {last['iteration']} of" in output
    assert f"best: l1 {min(values):.5g} at iteration {best['iteration']}" in output
