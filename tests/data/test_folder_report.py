"""The report on a folder: mean images and duplicates."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.folder_report import duplicates, equal_files, examine_folder, summary


def test_mean_and_standard_deviation(tmp_path: Path) -> None:
    for n, level in enumerate((40, 60, 200)):
        Image.new("RGB", (50 + n, 70), (level, 0, 255)).save(tmp_path / f"{n}.png")
    report = examine_folder("x", tmp_path, 16, lambda count, total: None)
    (mean,) = report.means.values()
    assert np.allclose(mean.image, (100, 0, 255))
    values = np.array([[level, 0, 255] for level in (40, 60, 200)], dtype=float)
    assert mean.deviation == pytest.approx(values.std())


def write_pair(file: Path, a: int, b: int, size: tuple[int, int] = (8, 6)) -> None:
    """Write a file with a pair side by side, each of the red ``a`` or ``b`` and of ``size``."""
    joined = Image.new("RGB", (2 * size[0], size[1]), (b, 0, 0))
    joined.paste((a, 0, 0), (0, 0, *size))
    joined.save(file)


def test_the_two_images_of_each_file(tmp_path: Path) -> None:
    """Sizes are those of the halves, and a file that cannot be halved is broken."""
    write_pair(tmp_path / "0.png", 10, 20)
    write_pair(tmp_path / "1.png", 50, 60)
    write_pair(tmp_path / "2.png", 90, 90, (7, 6))
    Image.new("RGB", (15, 6)).save(tmp_path / "odd.png")
    (tmp_path / "text.png").write_text("text")
    report = examine_folder("train", tmp_path, 8, lambda count, total: None, halved=True)
    red = {name: mean.image[:, :, 0].mean() for name, mean in report.means.items()}
    assert red == pytest.approx({"A": 50, "B": 170 / 3})
    assert report.same == [str(tmp_path / "2.png")]
    assert [Path(file.path).name for file in report.broken] == ["odd.png", "text.png"]
    assert report.broken[0].error.startswith("15x6 has an odd width")
    assert report.broken[1].error.startswith("not an image")
    assert len(report.small) == 3  # all are 6 pixels high
    by_width = examine_folder("train", tmp_path, (6, 8), lambda count, total: None, halved=True)
    assert [by_width.described_size(file) for file in by_width.small] == ["7x6 (half of 14x6)"]
    lines = summary(by_width, (6, 8))
    assert re.fullmatch(r"5, \S+ MiB; side by side, A on the left", lines["pairs"])
    assert lines["small"] == "1 with halves that have a height below 6 or a width below 8 pixels"
    assert lines["same"] == "1 with two halves of identical pixels"
    assert {"mean A", "mean B"} <= lines.keys()


def test_no_image_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    report = examine_folder("x", tmp_path, 1, lambda count, total: None)
    assert (report.means, len(report.broken)) == ({}, 1)
    assert "mean" not in summary(report, 1)


def test_duplicates_have_equal_pixels_and_shapes(tmp_path: Path) -> None:
    """Files are duplicates if pixels and shape are equal, whatever the file format."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 2)).save(tmp_path / "a" / "wide.png")
    Image.new("RGB", (2, 8)).save(tmp_path / "a" / "tall.png")
    Image.new("RGB", (2, 8)).save(tmp_path / "a" / "tall.ppm")
    groups = duplicates([examine_folder("a", tmp_path / "a", 1, lambda count, total: None)])
    assert [[Path(path).name for _, path in group] for group in groups] == [["tall.png", "tall.ppm"]]


def test_only_the_first_of_many_equal_files_are_named() -> None:
    group = [("trainA", f"{n}.png") for n in range(1, 1240)]
    assert equal_files(group[:2]) == "1.png (trainA) = 2.png (trainA)"
    first, others = group[0], [*group[1:4], ("trainB", "x.png")]
    expected = " = ".join(f"{path} ({name})" for name, path in (first, others[-1], *others[:-1]))
    assert equal_files([*group, others[-1]]) == f"{expected} and 1,235 more"
