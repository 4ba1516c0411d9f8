"""The cache of check results: a result is used until its file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.data import checked_files
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.scan import list_images
from tests.conftest import write_images


def test_a_file_is_decoded_once_until_it_changes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    check = checked_files.check_file

    def counted(path: Path) -> checked_files.Checked:
        decoded.append(path.name)
        return check(path)

    monkeypatch.setattr(checked_files, "check_file", counted)
    paths = list_images(dataset / "trainA")
    first = check_files(paths)
    assert check_files(paths) == first
    assert len(decoded) == 5
    assert (first[0].width, first[0].height, first[0].mode, first[0].plain) == (24, 20, "RGB", True)
    assert first[0].is_unchanged()
    write_images(dataset / "trainA", 1, size=(30, 20))
    assert not first[0].is_unchanged()
    assert check_files(paths)[0].width == 30
    assert len(decoded) == 6
    checked_files._cache_file().write_text('{"version": 2, "files": [{"path"')  # a damaged cache is ignored
    assert check_files(paths)[1] == first[1]
