"""A failed write leaves a file as it was, and its error names the file and the disk."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.training.safe_write import append, naming
from tests.training.limits import no_file_longer_than


def test_a_torn_write_is_taken_back(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with io.FileIO(file, "a") as stream:
        append(stream, b"first\n")
        with no_file_longer_than(10), pytest.raises(OSError, match="File too large"):
            append(stream, b"second\n")
        assert file.read_bytes() == b"first\n"
        append(stream, b"third\n")
    assert file.read_bytes() == b"first\nthird\n"


def test_partial_writes_are_continued(tmp_path: Path) -> None:
    class Slow(io.FileIO):
        def write(self, data: object) -> int:
            return super().write(memoryview(data)[:2])  # type: ignore[arg-type]

    with Slow(tmp_path / "f", "a") as stream:
        append(stream, b"all of it")
    assert (tmp_path / "f").read_bytes() == b"all of it"


def test_an_error_names_the_file_and_its_disk(tmp_path: Path) -> None:
    file = tmp_path / "samples" / "1.png"
    with pytest.raises(UserError) as raised, naming(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(raised.value).startswith(f"cannot write {file}: No space left on device (disk /")
    assert str(raised.value).endswith("GiB free)")
