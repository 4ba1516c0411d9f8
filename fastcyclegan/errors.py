"""Exceptions that the command line reports without a traceback, and helpers for one-line messages."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import TextIO


class UserError(Exception):
    """A mistake that the user can fix. The message is one clear line that names the cause."""


class StoppedError(Exception):
    """The run was asked to stop while it started or waited. Raised between iterations only.

    ``number`` is that of the signal that asked for it, or 0 if it was not a signal.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__("stopped before the first iteration")
        self.number = number


def system_reason(error: OSError) -> str:
    """Return the operating system's message for ``error``, such as "No space left on device"."""
    if error.strerror is None:
        return str(error)
    return error.strerror


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of ``error`` as one line of at most ``limit`` characters.

    If the message is empty, return the name of the error's class.
    """
    text = " ".join(str(error).split())[:limit]
    if not text:
        return type(error).__name__
    return text


# Zero-width joiners, which are part of some scripts and of emoji.
_JOINERS = ("\u200c", "\u200d")


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that would act on a terminal or hide other text.

    These are control characters, line breaks and invisible format characters. The bytes of a file name that
    is not UTF-8 are escaped too, as in caf\\xe9.jpg.
    """
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    category = unicodedata.category(character)
    if category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # how Python represents such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    if "\x80" <= character <= "\xff":  # not as such a byte
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str, limit: int = 80) -> str:
    """Return at most ``limit`` characters of ``text``, which comes from a file, for a message.

    What would act on a terminal, or begin another line, is escaped.
    """
    shown = printable(text[: limit + 1])
    if len(shown) <= limit:
        return shown
    return f"{shown[: limit - 3]}..."


def print_line(text: str, stream: TextIO) -> None:
    """Print ``text`` as one line to ``stream``, with what it cannot show escaped."""
    encoding = getattr(stream, "encoding", None)
    line = printable(text)
    if encoding is not None:
        line = line.encode(encoding, "backslashreplace").decode(encoding)
    print(line, file=stream, flush=True)


def escape_on_streams() -> None:
    """Make standard output and standard error escape the characters that their encoding does not have.

    For console commands, whose help and error boxes are printed by other packages.
    """
    for stream in (sys.stdout, sys.stderr):
        # A stream fails if it was closed, or replaced by one of another kind.
        with contextlib.suppress(OSError, ValueError):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")


# Parts of the messages of torch, CUDA, cuBLAS, cuDNN, oneDNN and Pillow, none of which has an error class of
# its own for every case. "Could not create a primitive" is all that oneDNN tells.
_NO_MEMORY = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "_ALLOC_FAILED",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that the memory of the host or of a device ran out.

    torch's own error class is recognised by its name, because this module does not import torch.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(text in str(error) for text in _NO_MEMORY)


# Reasons of the disk. The others, such as permissions, are those of the file or its folder.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def cannot_write(file: Path, error: OSError) -> UserError:
    """Return the error to raise if ``file`` cannot be written.

    It names the file, the reason and, if that is the reason, the disk.
    """
    message = f"cannot write {file}: {system_reason(error)}"
    disk = disk_of(file)
    if disk is not None and error.errno in _OF_THE_DISK:
        usage = shutil.disk_usage(disk)
        message += f" (disk {disk}: {usage.free / 2**30:,.1f} of {usage.total / 2**30:,.1f} GiB free)"
    return UserError(message)


def disk_of(file: Path) -> Path | None:
    """Return the folder where the disk that holds ``file`` is mounted, or None if it cannot be determined.

    The file and its folder do not have to exist yet.
    """
    try:
        folder = Path(os.path.realpath(file))
        while not folder.exists():
            folder = folder.parent
        while not folder.is_mount() and folder != folder.parent:
            folder = folder.parent
    except OSError:
        return None
    return folder
