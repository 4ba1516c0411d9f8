"""List image files: their order, folders that are visited once, and what is said of other files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.data.listing import find_files, list_images, no_images
from fastcyclegan.errors import UserError


def test_listing_sorts_before_limiting_and_skips_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c/z.tif", "._a.jpg", ".hidden/x.png", "notes.txt", "d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c/z.tif", "d.webp"]
    assert len(list_images(tmp_path, 2)) == 2


def test_the_most_common_suffixes_of_other_files_are_named(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"x.{n:02}").touch()
    found = find_files(tmp_path)
    assert found.counted_others().endswith(".09 (1), others (20)")
    with pytest.raises(
        UserError, match=r"no images \(looked for .*jpg, .*; found: \.00 \(1\), .*others \(20\)"
    ):
        raise no_images(found)
