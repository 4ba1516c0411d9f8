"""The cache of check results: a result is used until its file changes."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from fastcyclegan.data import background, checked_files
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.scan import list_images
from fastcyclegan.errors import StoppedError, UserError
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


def test_an_exception_of_progress_ends_the_checks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Path] = []

    def slow(path: Path) -> checked_files.Checked:
        checks.append(path)
        time.sleep(0.01)
        return checked_files.Checked(str(path), -1, -1)

    def stop(done: int, total: int) -> None:
        assert total == 1000
        if done == 10:
            raise StoppedError

    monkeypatch.setattr(checked_files, "check_file", slow)
    with pytest.raises(StoppedError):
        check_files([Path(f"/{n}.png") for n in range(1000)], stop)
    assert len(checks) < 100


def test_a_file_that_hangs_does_not_keep_progress_from_being_called(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, check = threading.Event(), checked_files.check_file
    paths = list_images(dataset / "trainA")

    def hanging(path: Path) -> checked_files.Checked:
        if path.name == paths[2].name:
            hang.wait()
        return check(path)

    calls: list[tuple[int, int]] = []

    def stop(*numbers: int) -> None:
        calls.append(numbers)
        if len(calls) == 4:
            raise StoppedError

    monkeypatch.setattr(checked_files, "check_file", hanging)
    monkeypatch.setattr(background, "PATIENCE", 0.1)
    started = time.monotonic()
    with pytest.raises(StoppedError):
        check_files(paths, stop)
    assert calls == [(1, 5), (2, 5), (2, 5), (2, 5)]
    assert time.monotonic() - started < 5
    hang.set()


def test_a_lack_of_file_descriptors_is_not_a_fault_of_the_file(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(UserError, match=r"000.png cannot be read: Too many open files"):
        check_files(list_images(dataset / "trainA"))


def test_temporary_files_of_killed_processes_are_removed(dataset: Path) -> None:
    folder = checked_files._cache_file().parent
    folder.mkdir(parents=True, exist_ok=True)
    left = folder / ".checked_images.json.999999999.partial"
    left.touch()
    os.utime(left, (0, 0))
    check_files(list_images(dataset / "trainA"))
    assert not left.exists()
