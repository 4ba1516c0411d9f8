"""The report on a folder: mean images and duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.folder_report import duplicates, equal_files, examine_folder


def test_mean_and_standard_deviation(tmp_path: Path) -> None:
    for n, level in enumerate((40, 60, 200)):
        Image.new("RGB", (50 + n, 70), (level, 0, 255)).save(tmp_path / f"{n}.png")
    report = examine_folder("x", tmp_path, 16, lambda count, total: None)
    assert report.mean is not None
    assert np.allclose(report.mean, (100, 0, 255))
    values = np.array([[level, 0, 255] for level in (40, 60, 200)], dtype=float)
    assert report.deviation == pytest.approx(values.std())


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
