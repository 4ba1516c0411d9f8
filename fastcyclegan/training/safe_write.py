"""Append to files so that a failed write leaves no torn record, and name the file in its error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from fastcyclegan.errors import cannot_write


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Raise UserError, which names ``file`` and its disk, in place of an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise cannot_write(file, error) from None


def append(stream: FileIO, data: bytes) -> None:
    """Append ``data`` to ``stream``, an unbuffered file. If that fails, the file gets its old length back.

    Raises OSError if the data cannot be written, for example because the disk is full.
    """
    length = stream.seek(0, os.SEEK_END)
    rest = memoryview(data)
    try:
        while rest:  # the system may write only a part, in particular the last one that fits on the disk
            rest = rest[stream.write(rest) :]
    except BaseException:
        with contextlib.suppress(OSError):
            stream.truncate(length)
        raise
