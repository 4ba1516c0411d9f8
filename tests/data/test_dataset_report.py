"""The report on a dataset: the problems that it detects, its printed lines, and its HTML page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastcyclegan.cli import check_dataset
from tests.conftest import write_images


def report(folder: Path, *args: str) -> int:
    return check_dataset([str(folder), "--output", str(folder.parent / "page.html"), *args])


def test_prints_and_draws_its_findings(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = dataset / "trainA" / "<b>.png"
    broken.write_bytes((dataset / "trainA" / "000.png").read_bytes()[:-200])
    shutil.copy(dataset / "trainA" / "001.png", dataset / "testA" / "again.png")
    Image.open(dataset / "trainB" / "002.png").save(dataset / "trainB" / "same_pixels.bmp")
    Image.new("CMYK", (300, 301), (0, 255, 255, 0)).save(dataset / "trainB" / "large.jpg")
    assert report(dataset, "--crop_size", "22") == 1  # a broken file would stop training
    logged = capsys.readouterr().out
    for line in (
        r"train A: \S*/trainA\n  images +6, ",
        r"sizes +24x20 \(5\); smallest 24x20, largest 24x20",
        r"modes +RGB \(5\), CMYK \(1\)",
        r"types +.png \(4\), .jpg \(1\), .bmp \(1\)",
        r"other +2 not plain",
        r"small +5 with a side below 22 pixels\n",
        r"broken: \S*/trainA/<b>.png: image file is truncated",
        r"small: \S*/trainA/000.png: 24x20",
        r"2 images found more than once \(identical pixels\)",
        (
            r"/trainA/001.png \(train A\) = \S*/testA/again.png \(test A\)\n +\S*/002.png \(train B\) ="
            r" \S*/same_pixels.bmp \(train B\)"
        ),
        r"page written to \S*page.html",
    ):
        assert re.search(line, logged), line
    page = (dataset.parent / "page.html").read_text()
    assert "&lt;b&gt;.png: image file is truncated" in page
    assert page.count('title="mean of ') == 4
    assert "large.jpg" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # the page needs no other file


def test_a_good_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(dataset) == 0
    assert capsys.readouterr().out.count("broken  0") == 4


def test_images_of_any_size_are_examined_on_request(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)
    assert report(dataset) == 1
    assert "000.png: it has more than 400 pixels; make the image smaller or pass" in capsys.readouterr().out
    assert report(dataset, "--allow_decompression_bombs") == 0


def test_two_folders_or_a_single_one(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset)
    assert check_dataset(["--data_A", "trainA", "--data_B", "trainB"]) == 0
    assert (dataset / "trainA2trainB_report.html").exists()
    assert check_dataset(["testA"]) == 0
    assert (dataset / f"{dataset.name}_testA_report.html").exists()
    assert "images: testA" in capsys.readouterr().out


def test_names_of_folders_that_are_too_long_together(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset)
    for name in ("A", "B"):
        (dataset / f"train{name}").rename(dataset / (name * 200))
    assert check_dataset(["--data_A", "A" * 200, "--data_B", "B" * 200]) == 0
    (page,) = dataset.glob("*.html")
    assert page.name.startswith(f"{'A' * 200}2BBB")
    assert page.name.endswith("_report.html")


def test_small_images_by_height_and_width(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sides, count in (("20 24", 0), ("21 24", 5), ("20 25", 5)):
        folder = str(dataset / "trainA")
        page = ["--output", str(dataset.parent / "page.html")]
        assert check_dataset([*page, "--crop_size", *sides.split(), folder]) == 0
        height, width = sides.split()
        line = f"{count} with a height below {height} or a width below {width} pixels"
        assert line in capsys.readouterr().out
        assert line in (dataset.parent / "page.html").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "give a folder, or --data_A and --data_B, but not both"),
        (["x", "--data_A", "y", "--data_B", "z"], "give a folder, or --data_A and --data_B, but not both"),
        (["--data_A", "x"], "--data_A and --data_B must be given together"),
        (["nowhere"], "nowhere: no such folder"),
        (["x", "--crop_size", "0"], "crop_size must be at least 1"),
        (["--crop_size", "8", "-8", "x"], "crop_size must be at least 1, got -8"),
    ],
)
def test_usage_errors_are_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_dataset(args) == 2
    assert message in capsys.readouterr().err


def test_names_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_dataset([str(tmp_path)]) == 2
    assert "contains no images" in capsys.readouterr().err


def test_prints_only_the_first_of_many_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "in", 30)
    assert report(tmp_path / "in") == 0
    assert "and 10 more; see the page" in capsys.readouterr().out
