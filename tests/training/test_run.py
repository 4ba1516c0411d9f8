"""What a run saves of itself is enough to go on with: its configuration is in its state, and its images are
found from anywhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.training.trainer import train
from tests.training.runs import TINY, run


def test_the_state_knows_the_configuration(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    (tmp_path / "r" / "config.json").unlink()
    again = parse_train(
        ["--name", "r", "--checkpoints_dir", str(tmp_path), "--continue_train", "--max_iters", "3"]
    )
    assert (again.data.dataroot, again.model.netG) == (dataset, "resnet_1blocks")
    assert train(again, Console()).run.iteration == 3


def test_a_run_goes_on_from_another_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images were given relative to where it was started, and the run itself was moved since."""
    monkeypatch.chdir(dataset.parent)
    train(
        parse_train(
            [*TINY, "--dataroot", dataset.name, "--name", "r", "--device", "cpu", "--max_iters", "2"]
        ),
        Console(),
    )
    (dataset.parent / "runs").rename(dataset.parent / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    where = str(dataset.parent / "moved")
    trainer = train(
        parse_train(["--name", "r", "--checkpoints_dir", where, "--continue_train", "--max_iters", "3"]),
        Console(),
    )
    assert trainer.run.iteration == 3
    assert trainer.run.folder == dataset.parent / "moved" / "r"
