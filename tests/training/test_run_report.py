"""The report of a run: its files, resuming, damaged files, and running without the log extra."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcyclegan.training.run_report import CURVES, PAGE, STATS, Report, read_stats
from tests.training.runs import run

LOSSES = {"adversarial": ("G_AB", "D_A"), "cycle and identity": ("cycle_A",)}


def record(iteration: int) -> dict[str, Any]:
    return {
        "iteration": iteration,
        "epoch": 1,
        "G_AB": 0.5,
        "cycle_A": 2.0,
        "D_A": 0.25,
        "lr": 1e-4,
        "it/s": 3.0,
        "images/s": 3.0,
    }


def test_every_file_is_written_and_readable(tmp_path: Path) -> None:
    report = Report(tmp_path, "<name>", {"a": "<b>"}, LOSSES)
    for n in (1, 2):
        report.add_stats(record(n))
        report.add_samples(n, Image.new("RGB", (20, 10), (n, 0, 0)))
    report.close()
    with Image.open(tmp_path / "samples" / "0000002.png") as image:
        assert image.getpixel((0, 0)) == (2, 0, 0)
    with Image.open(tmp_path / CURVES) as image:
        assert image.size == (1000, 360)
    page = (tmp_path / PAGE).read_text()
    assert "&lt;name&gt;" in page
    assert "http" not in page  # readable offline
    assert [r["iteration"] for r in read_stats(tmp_path)] == [1, 2]


def test_tensorboard_has_the_losses(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_stats(record(3))
    report.add_samples(3, Image.new("RGB", (4, 4)))
    report.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/G_AB", "loss/cycle_A", "loss/D_A", "lr", "it/s"} <= set(events.Tags()["scalars"])
    assert events.Scalars("loss/cycle_A")[0].step == 3
    assert events.Tags()["images"] == ["samples"]


def test_resume_drops_later_records(tmp_path: Path) -> None:
    report = Report(tmp_path, "n", {}, LOSSES)
    for n in (1, 2, 3):
        report.add_stats(record(n))
        report.add_samples(n, Image.new("RGB", (4, 4)))
    report.close()
    with (tmp_path / STATS).open("a") as file:
        file.write('{"iteration": 4, "G_')  # killed in the middle of a line
    Report(tmp_path, "n", {}, LOSSES, resume_at=2).close()
    assert [r["iteration"] for r in read_stats(tmp_path)] == [1, 2]
    page = (tmp_path / PAGE).read_text()
    assert "0000002.png" in page
    assert "0000003.png" not in page
    assert page.count("<h1>") == 1


def test_without_the_log_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("tensorboard", "matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    report = Report(tmp_path, "n", {}, LOSSES)
    report.add_stats(record(1))
    report.add_samples(1, Image.new("RGB", (4, 4)))
    report.close()
    assert report.missing == ["matplotlib", "tensorboard"]
    assert not (tmp_path / CURVES).exists()
    assert CURVES not in (tmp_path / PAGE).read_text()
    assert len(read_stats(tmp_path)) == 1


def test_damaged_side_files_do_not_matter(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2", "--print_freq", "1")
    with (tmp_path / "r" / "stats.jsonl").open("ab") as file:
        file.write(b'[1]\n{}\n{"iteration": 1}\n\xff\xfe\nnonsense\n')
    with (tmp_path / "r" / "index.html").open("ab") as file:
        file.write(b"<!-- a comment of mine -->\n\xff\n")
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "3")
    assert read_stats(tmp_path / "r")[-1]["iteration"] == 3
