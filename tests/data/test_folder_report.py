"""What is found in a folder: means, and images that are there twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.folder_report import duplicates, look_at


def test_means_are_means(tmp_path: Path) -> None:
    for n, level in enumerate((40, 60, 200)):
        Image.new("RGB", (50 + n, 70), (level, 0, 255)).save(tmp_path / f"{n}.png")
    found = look_at("x", tmp_path, 16, lambda done, total: None)
    assert found.mean is not None
    assert np.allclose(found.mean, (100, 0, 255))
    values = np.array([[level, 0, 255] for level in (40, 60, 200)], dtype=float)
    assert found.deviation == pytest.approx(values.std())


def test_pixels_count_not_bytes_and_shapes_do(tmp_path: Path) -> None:
    """The same values in another shape are another image."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 2)).save(tmp_path / "a" / "wide.png")
    Image.new("RGB", (2, 8)).save(tmp_path / "a" / "tall.png")
    Image.new("RGB", (2, 8)).save(tmp_path / "a" / "tall.ppm")
    groups = duplicates([look_at("a", tmp_path / "a", 1, lambda done, total: None)])
    assert [[Path(path).name for _, path in group] for group in groups] == [["tall.png", "tall.ppm"]]
