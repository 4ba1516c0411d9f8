"""Users' trackers get the values and grids of a run, and what they raise loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcyclegan import CycleGAN
from fastcyclegan.errors import UserError
from fastcyclegan.training.run_report import read_stats
from fastcyclegan.training.tracker import Tracker, Trackers, require_trackers, scalars_of_evaluation

TINY: dict[str, Any] = {
    "load_size": 16,
    "crop_size": 16,
    "netG": "resnet_0blocks",
    "netD": "pixel",
    "ngf": 2,
    "ndf": 2,
    "device": "cpu",
    "num_threads": 0,
    "loader": "folder",
    "print_freq": 1,
}


class Recorder:
    """Keeps what it gets, and raises ``error`` at iteration ``fails_at``, as long as that is set."""

    def __init__(self, fails_at: int | None = None, error: Exception | None = None) -> None:
        self.scalars: dict[int, Mapping[str, float]] = {}
        self.images: list[tuple[int, str, tuple[int, int]]] = []
        self.closed = 0
        self.fails_at, self.error = fails_at, error

    def add_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        if iteration == self.fails_at and self.error is not None:
            raise self.error
        self.scalars[iteration] = scalars

    def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
        self.images.append((iteration, name, image.size))

    def close(self) -> None:
        self.closed += 1


def test_a_tracker_gets_every_record_and_the_grids_with_and_without_a_folder(
    dataset: Path, tmp_path: Path
) -> None:
    for folder in (None, tmp_path / "r"):
        tracker, model = Recorder(), CycleGAN(**TINY)
        records = model.fit(dataset, max_iters=3, folder=folder, trackers=[tracker], display_freq=2)
        losses = {f"loss/{name}" for name in ("G_AB", "G_BA", "D_A", "D_B", "cycle_A", "cycle_B")}
        assert list(tracker.scalars) == [record["iteration"] for record in records] == [1, 2, 3]
        assert tracker.scalars[1].keys() == losses | {"loss/idt_A", "loss/idt_B", "lr", "it/s"}
        assert tracker.scalars[2]["loss/cycle_A"] == records[1]["cycle_A"]
        assert [(iteration, name) for iteration, name, _ in tracker.images] == [
            (2, "samples"),
            (3, "samples"),
        ]
        assert tracker.images[0][2][0] > 16
        assert tracker.closed == 1
    assert model.fit(max_iters=4)  # without a tracker
    assert list(tracker.scalars) == [1, 2, 3]


def test_trackers_do_not_change_the_result(dataset: Path) -> None:
    weights = []
    for trackers in ([], [Recorder()]):
        model = CycleGAN(**TINY)
        model.fit(dataset, max_iters=2, trackers=trackers, display_freq=1)
        weights.append(model.G_AB.state_dict())
    for one, two in zip(weights[0].values(), weights[1].values(), strict=True):
        assert one.equal(two)


@pytest.mark.parametrize("error", [RuntimeError("no room"), UserError("no room")])
def test_the_state_is_saved_before_the_error_of_a_tracker_is_raised(
    dataset: Path, tmp_path: Path, error: Exception
) -> None:
    failing, other, model = Recorder(2, error), Recorder(), CycleGAN(**TINY)
    with pytest.raises(type(error), match="no room") as raised:
        model.fit(dataset, max_iters=4, folder=tmp_path / "r", trackers=[failing, other])
    assert "saved after iteration 2" in str(raised.value) + str(getattr(raised.value, "__notes__", ""))
    assert (failing.closed, other.closed) == (1, 1)
    resumed, again = CycleGAN.load(tmp_path / "r"), Recorder()
    assert resumed.iteration == 2
    resumed.fit(dataset, max_iters=4, folder=tmp_path / "r", trackers=[again])
    assert list(again.scalars) == [2, 3, 4]  # the record that failed is added again
    assert [record["iteration"] for record in read_stats(tmp_path / "r")] == [1, 2, 3, 4]


def test_training_without_a_folder_continues_after_the_error_of_a_tracker(dataset: Path) -> None:
    tracker, model = Recorder(2, RuntimeError("no room")), CycleGAN(**TINY)
    with pytest.raises(RuntimeError, match="no room"):
        model.fit(dataset, max_iters=4, trackers=[tracker])
    model.fit(max_iters=4, trackers=[Recorder()])
    assert model.iteration == 4


def test_all_trackers_are_closed_although_one_fails() -> None:
    class Failing(Recorder):
        def close(self) -> None:
            raise RuntimeError("lost")

    others = [Recorder(), Recorder()]
    trackers = Trackers([others[0], Failing(), others[1]])
    with pytest.raises(RuntimeError, match="lost"):
        trackers.close()
    assert [tracker.closed for tracker in others] == [1, 1]
    trackers = Trackers([Failing()])
    with pytest.raises(ValueError, match="the body"), trackers.closing():
        raise ValueError("the body")


def test_trackers_are_closed_although_the_run_cannot_start(dataset: Path, tmp_path: Path) -> None:
    """Its trackers are told what the resumed run did not log, which fails before the first iteration."""
    model = CycleGAN(**TINY)
    with pytest.raises(RuntimeError, match="no room"):
        model.fit(
            dataset, max_iters=4, folder=tmp_path / "r", trackers=[Recorder(2, RuntimeError("no room"))]
        )
    again = Recorder(2, RuntimeError("still no room"))
    with pytest.raises(RuntimeError, match="still no room"):
        CycleGAN.load(tmp_path / "r").fit(dataset, max_iters=4, folder=tmp_path / "r", trackers=[again])
    assert again.closed == 1


def test_a_tracker_that_changes_what_it_gets_changes_it_for_no_other(dataset: Path) -> None:
    class Greedy(Recorder):
        def add_scalars(self, iteration: int, scalars: Any) -> None:
            scalars.clear()

        def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
            image.paste(0, (0, 0, *image.size))

    seen: list[Any] = []

    class Other(Recorder):
        def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
            seen.append(image.getextrema())

    other = Other()
    CycleGAN(**TINY).fit(str(dataset), max_iters=1, trackers=[Greedy(), other])
    assert "lr" in other.scalars[1]
    assert any(high for _, high in seen[0])


def test_what_is_no_tracker_is_rejected(dataset: Path) -> None:
    class Half:
        def add_scalars(self) -> None: ...

    tracker: Tracker = Recorder()
    assert require_trackers([tracker]) == (tracker,)
    for wrong, message in (
        ([Half()], "Half lacks add_image, close"),
        (tracker, "trackers must be a list of objects, got Recorder"),
        ([Recorder], "a tracker must be an object, got the class Recorder: call it"),
    ):
        with pytest.raises(TypeError, match=message):
            CycleGAN(**TINY).fit(dataset, trackers=wrong)  # type: ignore[arg-type]


def test_the_table_names_the_trackers(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CycleGAN(**TINY).fit(dataset, max_iters=1, trackers=[Recorder()], verbose=True)
    assert "\n  trackers       Recorder\n" in capsys.readouterr().out


def test_evaluations_have_a_curve_for_each_metric() -> None:
    record = {"iteration": 4, "epoch": 1, "eval_l1": 0.5, "eval_kid_AtoB": {"mean": 0.25, "std": 0.1}}
    assert scalars_of_evaluation(record) == {"eval/l1": 0.5, "eval/kid_AtoB": 0.25}
    one, two = Recorder(), Recorder()
    Trackers([one, two]).add_evaluation(record)
    assert one.scalars == two.scalars == {4: {"eval/l1": 0.5, "eval/kid_AtoB": 0.25}}
