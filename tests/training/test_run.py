"""A run saves everything needed to resume it: its configuration, and the absolute paths of its images."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.training.trainer import train
from tests.training.runs import TINY, run


def test_the_state_contains_the_configuration(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2")
    (tmp_path / "r" / "config.json").unlink()
    config = parse_train(
        ["--name", "r", "--checkpoints_dir", str(tmp_path), "--continue_train", "--max_iters", "3"]
    )
    assert (config.data.dataroot, config.model.netG) == (dataset, "resnet_1blocks")
    assert train(config, Console()).run.iteration == 3


def test_a_run_can_be_resumed_from_another_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images were given as a relative path, and the run's folder has been moved in the meantime."""
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
    folder = str(dataset.parent / "moved")
    trainer = train(
        parse_train(["--name", "r", "--checkpoints_dir", folder, "--continue_train", "--max_iters", "3"]),
        Console(),
    )
    assert trainer.run.iteration == 3
    assert trainer.run.folder == dataset.parent / "moved" / "r"
