"""Settings of native libraries: silence libtiff, and return freed memory to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path


@functools.cache
def silence_libtiff() -> None:
    """Make the libtiff that Pillow has loaded print nothing, if it is a shared library on Linux.

    Its messages name no file. Pillow raises an error for the same faults, which is reported with the name.
    """
    for library in _loaded("libtiff"):
        # Other libraries have such names, too, for example a plug-in of DALI.
        with contextlib.suppress(OSError, AttributeError):
            set_handler = ctypes.CDLL(library).TIFFSetErrorHandler
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


def _loaded(name: str) -> set[str]:
    """Return the files of the shared libraries of this process whose names begin with ``name``."""
    files = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            _, _, path = line.partition("/")
            if Path(path).name.startswith(name):
                files.add(f"/{path}")
    return files


def return_memory() -> None:
    """Return freed memory to the operating system. glibc keeps it, separately for every thread."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
