"""The report on a dataset: the problems that it detects, its printed lines, and its HTML page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fastcyclegan.cli import check_dataset
from fastcyclegan.config import DataConfig
from fastcyclegan.data.scan import find_images
from fastcyclegan.errors import UserError
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


def write_pairs(folder: Path, count: int, width: int = 24, seed: int = 0) -> None:
    """Write files with two images side by side, each of ``width`` x 20."""
    write_images(folder, count, size=(2 * width, 20), seed=seed)


def test_files_with_pairs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "maps"
    write_pairs(root / "train", 5, seed=1)
    write_pairs(root / "val", 2, seed=2)
    assert report(root) == 0
    logged = capsys.readouterr().out
    for line in (
        rf"{root}: pairs side by side \(--dataset_mode single takes them for single images\)\n",
        r"train: \S*/train\n  pairs +5, \S+ MiB; side by side, A on the left\n",
        r"val: \S*/val\n  pairs +2, ",
        r"small +5 with halves that have a side below 256 pixels\n",
        r"    small: \S*/train/000.png: 24x20 \(half of 48x20\)\n",
        r"mean A +red \d+, green",
        r"mean B +red \d+, green",
    ):
        assert re.search(line, logged), line
    page = (tmp_path / "page.html").read_text()
    assert all(f'title="mean of {name}"' in page for name in ("train A", "train B", "val A", "val B"))


def test_findings_in_files_with_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "maps"
    write_pairs(root / "train", 2, seed=1)
    shutil.copytree(root / "train", root / "test")
    image = Image.new("RGB", (48, 20), "red")
    image.save(root / "train" / "plain.png")
    assert report(root, "--dataset_mode", "aligned", "--crop_size", "24", "20") == 0
    logged = capsys.readouterr().out
    assert "pairs side by side (" not in logged  # as the flag says
    assert f"    same: {root}/train/plain.png\n" in logged
    assert "2 images found more than once" in logged
    image.crop((0, 0, 47, 20)).save(root / "test" / "odd.png")
    assert report(root) == 1
    assert f"    broken: {root}/test/odd.png: 47x20 has an odd width" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "Files with two halves of identical pixels" in page
    assert "47x20 has an odd width" in page


def test_which_folders_hold_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images directly in train are pairs, unless they are said to be single ones."""
    root = tmp_path / "cats"
    write_images(root / "train", 2, size=(23, 20))
    assert report(root) == 1
    assert report(root, "--dataset_mode", "single") == 0
    assert re.search(r"train: \S*/train\n  images +2, ", capsys.readouterr().out)
    assert report(root / "train") == 0
    assert report(root / "train", "--dataset_mode", "aligned") == 1
    (root / "train").rename(root / "more")
    (root / "train").mkdir()
    (root / "more").rename(root / "train" / "tabby")
    assert report(root) == 0  # classes of single images
    assert report(root, "--dataset_mode", "aligned") == 1


def test_a_folder_without_two_domains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused in the words of training."""
    write_pairs(tmp_path / "maps" / "train", 2)
    assert report(tmp_path / "maps", "--dataset_mode", "unaligned") == 2
    printed = capsys.readouterr()
    with pytest.raises(UserError) as error:
        find_images(DataConfig(dataroot=tmp_path / "maps"), 0, print)
    assert printed.err == f"error: {error.value}\n"
    assert not (tmp_path / "page.html").exists()


def test_train_comes_before_the_folders_of_two_domains(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in training on pairs."""
    write_pairs(dataset / "train", 2)
    assert report(dataset, "--dataset_mode", "aligned") == 0
    assert "side by side, A on the left" in capsys.readouterr().out
    assert report(dataset) == 0
    assert "train A: " in capsys.readouterr().out


def test_pairs_of_two_folders(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset)
    flags = ["--dataset_mode", "aligned", "--output", "page.html"]
    folders = ["--data_A", "trainA", "--data_B", "trainB"]
    assert check_dataset([*folders, *flags]) == 1
    logged = capsys.readouterr().out
    assert re.search(r"pairs of train A and train B:\n  pairs +4\n  unpaired +1 of A and 0 of B ", logged)
    assert f"    unpaired: {dataset}/trainA/004.png\n" in logged
    assert f"{dataset}/trainA/004.png" in Path("page.html").read_text().split("Images without a partner")[1]
    assert check_dataset([*folders, "--output", "page.html"]) == 0  # need not be pairs
    (dataset / "trainA" / "004.png").unlink()
    assert check_dataset([*folders, *flags]) == 0


def test_pairs_of_a_dataset_of_two_domains(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / "trainA" / "004.png").unlink()
    Image.new("RGB", (30, 20)).save(dataset / "trainB" / "001.png")
    shutil.copy(dataset / "testA" / "001.png", dataset / "testB" / "001.png")
    assert report(dataset, "--dataset_mode", "aligned") == 0
    logged = capsys.readouterr().out
    assert f"    unequal: {dataset}/trainA/001.png: 24x20, {dataset}/trainB/001.png: 30x20\n" in logged
    assert f"    same: {dataset}/testA/001.png = {dataset}/testB/001.png\n" in logged
    assert "pairs of test A and test B:" in logged
    page = (dataset.parent / "page.html").read_text()
    assert "Pairs of different sizes (1)" in page
    assert "Pairs of identical pixels (1)" in page


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
        (["nowhere", "--dataset_mode", "single"], "nowhere: no such folder"),
        (
            ["--data_A", "x", "--data_B", "y", "--dataset_mode", "single"],
            "--data_A and --data_B are two domains; for single images, give one folder",
        ),
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
