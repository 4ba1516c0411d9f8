"""Silence the messages that libtiff writes to standard error, which name no file.

Pillow raises an error for the same faults, and the error is reported with the name of the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path


@functools.cache
def silence_libtiff() -> None:
    """Make the libtiff that Pillow has loaded print nothing, if it is a shared library on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        for library in _loaded("libtiff"):
            set_handler = ctypes.CDLL(library).TIFFSetErrorHandler
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


def _loaded(name: str) -> set[str]:
    """Return the files of the shared libraries of this process whose names begin with ``name``."""
    files = set()
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        _, _, path = line.partition("/")
        if Path(path).name.startswith(name):
            files.add(f"/{path}")
    return files
