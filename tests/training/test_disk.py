"""The disk space that a run needs is estimated well, and reported beside what is free."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fastcyclegan.cli import parse_train
from fastcyclegan.training.disk import DiskNeed, describe_disk, disk_needed, disk_warning, size
from fastcyclegan.training.run import Run
from fastcyclegan.training.start import Overrides, start
from tests.training.runs import arguments, run


def started(dataset: Path, runs: Path, *more: str) -> Run:
    return start(parse_train(arguments(dataset, runs, "r", *more)), lambda line: None)


def need(dataset: Path, runs: Path, *more: str) -> DiskNeed:
    shutil.rmtree(runs / "r", ignore_errors=True)
    return disk_needed(started(dataset, runs, *more))


def total(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("flags", [(), ("--ema", "0.9", "--pool_size", "30")], ids=str)
def test_the_estimate_fits_a_real_run(dataset: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The run has 3 epochs of 5 iterations, and draws more grids than it keeps."""
    epochs = ("--n_epochs", "2", "--n_epochs_decay", "1", "--save_epoch_freq", "1", "--keep_samples", "2")
    trained = run(dataset, tmp_path, "r", *epochs, "--display_freq", "5", "--print_freq", "1", *flags).run
    folder, estimate = tmp_path / "r", disk_needed(trained)
    weights = total(list(folder.glob("*.pth")))
    grids = list((folder / "samples").iterdir())
    logs = total([folder / "stats.jsonl", folder / "index.html", folder / "losses.png"])
    logs += total(list((folder / "tensorboard").iterdir()))
    assert len(list(folder.glob("*_net_G_A.pth"))) == 4  # 1, 2, 3 and latest
    assert len(grids) == 2
    assert 0.5 * estimate.weights < weights <= estimate.weights
    assert 0.5 * estimate.state < 3 * (folder / "state.pt").stat().st_size <= estimate.state
    assert 0.1 * estimate.samples < total(grids) <= estimate.samples
    assert 0.1 * estimate.logs < logs <= estimate.logs
    assert estimate.complete


def test_the_number_of_copies(dataset: Path, tmp_path: Path) -> None:
    """There are 5 iterations per epoch and 200 epochs."""
    one = need(dataset, tmp_path, "--save_epoch_freq", "0").weights
    for copies, flags in (
        (1 + 40, ()),
        (1 + 3, ("--max_iters", "75")),
        (1 + 2, ("--max_iters", "74")),
        (1 + 21, ("--epoch_count", "100")),
        (1 + 200, ("--save_epoch_freq", "1")),
        (1 + 4, ("--keep_epochs", "3")),
        (1 + 40, ("--keep_epochs", "300")),
        (1 + 40 + 250, ("--save_by_iter", "--save_latest_freq", "4")),
    ):
        estimate = need(dataset, tmp_path, *flags)
        assert (estimate.weights, estimate.complete) == (copies * one, True), flags
    assert not need(dataset, tmp_path, "--save_by_iter").complete


def test_the_other_parts_follow_their_flags(dataset: Path, tmp_path: Path) -> None:
    usual = need(dataset, tmp_path)
    assert need(dataset, tmp_path, "--keep_samples", "50").samples == usual.samples / 2
    assert need(dataset, tmp_path, "--pool_size", "5").state == usual.state + 3 * 4 * (2 * 2 * 3 * 16 * 16)
    assert need(dataset, tmp_path, "--max_iters", "10").logs < usual.logs
    assert need(dataset, tmp_path, "--print_freq", "50").logs < usual.logs
    unknown = need(dataset, tmp_path, "--preprocess", "none")
    assert (unknown.samples, unknown.complete) == (0, False)
    assert unknown.state == need(dataset, tmp_path, "--pool_size", "0").state


def test_the_size_of_the_callers_tensors_is_known(dataset: Path, tmp_path: Path) -> None:
    batches = [torch.zeros(1, 3, 24, 16)]
    config = parse_train(arguments(dataset, tmp_path, "t"))
    tensors = disk_needed(start(config, lambda line: None, overrides=Overrides(loaders=(batches, batches))))
    usual = need(dataset, tmp_path)
    assert tensors.complete
    assert tensors.state == usual.state + 3 * 3 * 4 * (2 * 3 * 8 * 16)
    assert tensors.samples > usual.samples


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_the_row_and_the_warning(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1000 * 2**30]
    monkeypatch.setattr(shutil, "disk_usage", lambda disk: Usage(2**50, 0, free[0]))
    new = started(dataset, tmp_path)
    row = new.table["disk"]
    assert row == describe_disk(new)
    parts = ", ".join(rf"[\d.]+ MiB for {part}" for part in ("the state", "weights", "samples", "logs"))
    assert re.fullmatch(rf"up to [\d.]+ MiB: {parts}; 1,000\.0 GiB free on /.*", row), row
    estimate = disk_needed(new)
    free[0] = estimate.total
    (tmp_path / "r" / "config.json").unlink()
    assert disk_warning(new) is None
    free[0] -= 1
    warning = disk_warning(new)
    assert warning is not None
    assert warning.startswith(f"the disk may become full: the run needs up to {size(estimate.total)}, but")
    assert "--keep_epochs" in warning
    (tmp_path / "r" / "samples").mkdir()
    (tmp_path / "r" / "samples" / "0000001.png").write_bytes(b"x")
    assert disk_warning(new) is None  # a resumed run has written one byte before
    free[0] -= 1
    assert "of which 0.1 MiB exist, but" in str(disk_warning(new))
    shutil.rmtree(tmp_path / "r")
    assert describe_disk(started(dataset, tmp_path, "--preprocess", "none")).startswith("at least")


def test_a_run_without_files_has_no_row(dataset: Path, tmp_path: Path) -> None:
    config = parse_train(arguments(dataset, tmp_path, "r"))
    without = start(config, lambda line: None, overrides=Overrides(files=False))
    assert "disk" not in without.table
    assert disk_warning(without) is None


def test_the_warning_is_printed_after_the_table(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda disk: Usage(2**50, 0, 2**20))
    run(dataset, tmp_path, "r", "--max_iters", "1")
    lines = capsys.readouterr().out.splitlines()
    (number,) = (n for n, line in enumerate(lines) if line.startswith("the disk may become full"))
    assert re.match(r"  disk +up to", lines[number - 1])


def test_sizes_in_words() -> None:
    assert [size(n) for n in (0, 1, 2**20, 2**20 + 1)] == ["0.0 MiB", "0.1 MiB", "1.0 MiB", "1.1 MiB"]
    assert [size(n) for n in (10 * 2**20, 10 * 2**20 + 1, 2**30 - 1)] == ["10 MiB", "11 MiB", "1,024 MiB"]
    assert [size(n) for n in (2**30, 5000 * 2**30)] == ["1.0 GiB", "5,000.0 GiB"]
