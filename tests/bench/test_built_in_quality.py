"""The record of quality on the built-in images: scores of both directions for each seed, and a strip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench import built_in_quality
from fastcyclegan import cli

ROOT = Path(__file__).parents[2]


def test_records_the_scores_that_training_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"--seeds 2 --output {tmp_path} --max_iters 2 --device cpu"
    assert built_in_quality.main(command.split()) == 0
    record = json.loads((tmp_path / "built_in_dataset.json").read_text())
    assert record["iterations"] == 2
    assert record["flags"] == ["--max_iters", "2", "--device", "cpu"]
    assert [run["seed"] for run in record["runs"]] == [0, 1]
    first, second = record["runs"]
    assert first["AB"] != second["AB"]
    assert built_in_quality.table(record) in capsys.readouterr().out
    assert cli.train(f"--seed 1 --max_iters 2 --device cpu --checkpoints_dir {tmp_path}".split()) == 0
    printed = capsys.readouterr().out
    for score in (second["AB"], second["BA"]):
        assert f"close {score['gap_closed']:.2f} of the difference" in printed
        assert f"is {score['distance_ratio']:.2f} times that" in printed
    # Both directions in a row of four images each, twice as large as the images, above their translations.
    with Image.open(tmp_path / "built_in_dataset.png") as strip:
        assert strip.size == (2 * (4 * 128 + 3 * 8) + 32, 2 * 128 + 8)


def test_the_strip_shows_scenes_before_and_after(tmp_path: Path) -> None:
    """With an untrained generator, the upper row has the colours of the domains, and the lower has not."""
    trainer, _ = built_in_quality.train(0, ["--max_iters", "1", "--device", "cpu"])
    strip = built_in_quality.strip(trainer, 0)
    upper, lower = (strip.crop((0, top, 128, top + 128)).getcolors(2**14) for top in (0, 136))
    assert {colour for _, colour in upper or ()} == {(226, 221, 208), (214, 108, 44)}
    assert len(lower or ()) > 50


def test_the_page_shows_the_committed_scores() -> None:
    record = json.loads((ROOT / "bench" / "results" / "built_in_dataset.json").read_text())
    assert built_in_quality.table(record) in (ROOT / "fastcyclegan" / "data" / "README.md").read_text()


def test_needs_at_least_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        built_in_quality.main(["--seeds", "0"])
    assert ended.value.code == 2
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
