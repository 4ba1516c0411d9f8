"""--use_wandb logs what tensorboard gets, and what goes wrong there ends no run.

Most tests use a module that stands for wandb.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from fastcyclegan import cli
from fastcyclegan.cli import parse_train
from fastcyclegan.config import RunConfig
from fastcyclegan.errors import UserError
from fastcyclegan.training.run_report import read_stats
from fastcyclegan.training.wandb_tracker import ID, WandbTracker
from tests.commands import TINY, fails
from tests.training.runs import TRAIN


class FakeRun:
    """Stands for a run of wandb, and keeps what it gets."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.id = "abc123" if options["id"] is None else options["id"]
        self.url, self.dir, self.offline, self.disabled = "https://wandb.test/abc123", "", False, False
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str | None]] = []
        self.finished = 0
        self.error: Exception | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1
        if self.error is not None:
            raise self.error


class FakeWandb(ModuleType):
    """Stands for the module wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[FakeRun] = []
        self.error: Exception | None = None

    def init(self, **options: Any) -> FakeRun:
        if self.error is not None:
            raise self.error
        self.runs.append(FakeRun(options))
        return self.runs[-1]

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Image(self, image: Image.Image) -> tuple[str, Image.Image]:
        return "image", image


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def args(dataset: Path, tmp_path: Path) -> list[str]:
    runs = ["--checkpoints_dir", str(tmp_path / "runs"), "--name", "r", "--print_freq", "1"]
    return [*TINY, "--loader", "folder", "--dataroot", str(dataset), *runs]


def test_a_run_logs_what_tensorboard_gets(
    wandb: FakeWandb, args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--use_wandb", "--wandb_project_name", "zebras", "--max_iters", "3", "--display_freq", "2"]
    assert cli.train([*args, *flags]) == 0
    (run,) = wandb.runs
    assert (run.options["project"], run.options["name"], run.options["id"]) == ("zebras", "r", None)
    assert run.options["dir"] == tmp_path / "runs" / "r"
    assert run.options["config"]["optim"]["max_iters"] == 3
    assert (run.options["settings"]["console"], run.options["settings"]["silent"]) == ("off", True)
    assert run.metrics == [("iteration", None), ("*", "iteration")]
    scalars = [values for values in run.logged if "samples" not in values]
    records = read_stats(tmp_path / "runs" / "r")
    assert [values["iteration"] for values in scalars] == [1, 2, 3]
    for values, record in zip(scalars, records, strict=True):
        losses = {f"loss/{name}": value for name, value in record.items() if "_" in name}
        assert values == {"iteration": record["iteration"], "lr": 2e-4, "it/s": record["it/s"], **losses}
    grids = [(values["iteration"], values["samples"]) for values in run.logged if "samples" in values]
    assert [(iteration, grid[0]) for iteration, grid in grids] == [(2, "image"), (3, "image")]
    assert run.finished == 1
    output = capsys.readouterr().out
    assert "wandb: https://wandb.test/abc123\n" in output
    assert "\n  trackers       wandb (project zebras)\n" in output


def test_a_resumed_run_continues_the_wandb_run(wandb: FakeWandb, args: list[str], tmp_path: Path) -> None:
    assert cli.train([*args, "--use_wandb", "--max_iters", "2", "--wandb_project_name", "p"]) == 0
    assert (tmp_path / "runs" / "r" / ID).read_text() == "abc123\n"
    resume = ["--continue_train", "--name", "r", "--checkpoints_dir", str(tmp_path / "runs")]
    assert cli.train([*resume, "--max_iters", "3"]) == 0
    first, second = wandb.runs
    assert (second.options["id"], second.options["resume"]) == ("abc123", "allow")
    assert second.options["project"] == first.options["project"] == "p"
    assert second.options["config"]["optim"]["max_iters"] == 3
    # The iterations of a run that goes back are logged too: they are no steps of wandb.
    assert cli.train([*resume, "--epoch", "latest", "--max_iters", "3"]) == 0  # nothing is left to train
    assert len(wandb.runs) == 2
    # A saved project has no effect, and is no mistake.
    assert not parse_train([*resume, "--no_use_wandb"]).run.use_wandb
    assert cli.train([*args, "--overwrite", "--use_wandb", "--max_iters", "1"]) == 0
    assert wandb.runs[-1].options["id"] is None


def test_a_project_without_wandb_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    from fastcyclegan import CycleGAN

    assert "--wandb_project_name needs --use_wandb" in fails(capsys, "--wandb_project_name", "p")
    with pytest.raises(UserError, match="--wandb_project_name needs --use_wandb"):
        CycleGAN(wandb_project_name="p")
    assert CycleGAN(wandb_project_name="p", use_wandb=True).config.run.use_wandb


def test_a_missing_wandb_is_one_line_and_nothing_is_written(
    args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without_wandb(name: str, *more: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return original(name, *more)

    message = "error: --use_wandb: wandb is not installed: pip install '.[wandb]'\n"
    monkeypatch.setattr(builtins, "__import__", without_wandb)
    assert fails(capsys, *args, "--use_wandb") == message
    assert fails(capsys, *args, "--use_wandb", "--dry_run") == message
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # a folder of that name
    assert fails(capsys, *args, "--use_wandb") == message
    assert not (tmp_path / "runs").exists()


def test_wandb_that_cannot_begin_is_one_line_and_nothing_is_written(
    wandb: FakeWandb, args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.error = RuntimeError("No API key configured.\nUse `wandb login` to log in.")
    message = "No API key configured. Use `wandb login` to log in. (with WANDB_MODE=offline"
    assert message in fails(capsys, *args, "--use_wandb")
    assert not (tmp_path / "runs").exists()
    assert cli.train([*args, "--max_iters", "1"]) == 0
    before = (tmp_path / "runs" / "r" / "config.json").read_bytes()
    resume = ("--continue_train", "--name", "r", "--checkpoints_dir", str(tmp_path / "runs"))
    assert message in fails(capsys, *resume, "--use_wandb", "--max_iters", "2")
    assert (tmp_path / "runs" / "r" / "config.json").read_bytes() == before


def tracker(wandb: FakeWandb, folder: Path | None, lines: list[str]) -> tuple[WandbTracker, FakeRun]:
    return WandbTracker(RunConfig(name="r"), {}, folder, lines.append), wandb.runs[-1]


def test_errors_after_the_start_are_one_warning(wandb: FakeWandb, tmp_path: Path) -> None:
    lines: list[str] = []
    tracked, run = tracker(wandb, tmp_path, lines)
    run.error = ConnectionError("Connection\nlost")
    for iteration in (1, 2):
        tracked.add_scalars(iteration, {"lr": 1.0})
        tracked.add_image(iteration, "samples", Image.new("RGB", (4, 4)))
    tracked.close()
    warning = "warning: wandb: Connection lost; nothing more is logged to wandb, and training continues"
    assert lines[1:] == [warning]
    assert run.finished == 1


def test_values_that_are_not_uploaded_in_time_are_one_warning(wandb: FakeWandb, tmp_path: Path) -> None:
    lines: list[str] = []
    tracked, run = tracker(wandb, tmp_path, lines)
    run.error, run.dir = TimeoutError(), str(tmp_path / "wandb" / "run-1" / "files")
    tracked.close()
    assert lines[1].startswith("warning: wandb: not finished in 120 seconds: wandb sync ")
    assert str(tmp_path / "wandb" / "run-1") in lines[1]


def test_grids_are_reduced_and_thinned_as_for_tensorboard(wandb: FakeWandb) -> None:
    tracked, run = tracker(wandb, None, [])
    for iteration in (100, 104, 106):
        tracked.add_image(iteration, "samples", Image.new("RGBA", (1024, 64)))
    assert [values["iteration"] for values in run.logged] == [100, 106]
    assert run.logged[0]["samples"][1].size == (512, 32)


def test_a_damaged_id_is_one_line(wandb: FakeWandb, tmp_path: Path) -> None:
    (tmp_path / ID).write_bytes(b"\xff not an id")
    with pytest.raises(UserError, match=f"{ID}: not the id of a wandb run: .*; delete it"):
        tracker(wandb, tmp_path, [])
    assert not wandb.runs


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None,
    reason="wandb is not installed (it is not part of the extra test, because it takes 100 MB)",
)
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_the_real_wandb_without_a_network(args: list[str], tmp_path: Path, mode: str) -> None:
    process = subprocess.run(
        [*TRAIN, *args, "--use_wandb", "--max_iters", "2"],
        env={**os.environ, "WANDB_MODE": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    folder = tmp_path / "runs" / "r"
    if mode == "disabled":
        assert not (folder / "wandb").exists()
        return
    name = (folder / ID).read_text().strip()
    assert list((folder / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert f"-{name} uploads what is logged on this machine only" in process.stdout
