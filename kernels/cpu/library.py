"""The C++ kernels of this process: a library of the wheel, or one that is compiled here at first use.

The files in ``source`` have a plain C interface and use no headers of PyTorch. A wheel carries them compiled
(``wheel_library.py``). Where it does not, as in a checkout, or where its library cannot be loaded, they are
compiled for this machine's processor at first use (``compiled_library.py``).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from .._cache import cache_folder
from . import compiled_library, wheel_library
from ._compiler import CompilerError
from .processors import processor, why_not_here

SOURCE = Path(__file__).with_name("source")


@dataclass(frozen=True)
class Answer:
    """The library of this process or the reason why there is none, and how that came about.

    Attributes:
        reason: why the kernels cannot be used, as the end of "impl='cpp' ...", or "".
        library: the loaded library, or None.
        origin: the library's file and where it was made: "FILE, built by COMPILER" for that of a wheel, and
            "FILE, compiled on this machine".
        process: the number of the process that found out.
    """

    reason: str
    library: ctypes.CDLL | None
    origin: str
    process: int


_answer: Answer | None = None
_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked process: another thread of its parent could have held it."""
    global _lock
    _lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)


def why_not_cpp() -> str:
    """Return why the C++ kernels cannot be used, as the end of "impl='cpp' ...", or "" if they can.

    The first call compiles the kernels if they are neither in the wheel nor in the cache. The answer is kept
    for the process.
    """
    return answer().reason


# Make torch.compile call this function instead of tracing it, see dispatch.py.
why_not_cpp._dynamo_marked_constant = True  # type: ignore[attr-defined]


def library() -> ctypes.CDLL:
    """Return the loaded library. Raises RuntimeError with the reason if there is none."""
    found = answer()
    if found.library is None:
        raise RuntimeError(f"the C++ kernels cannot be used: impl='cpp' {found.reason}")
    return found.library


def threads() -> int:
    """Return how many threads a kernel should use: PyTorch's setting, or 1 after a fork.

    In a forked process, GNU OpenMP would wait for the threads that its parent had, forever.
    """
    if _answer is not None and _answer.process != os.getpid():
        return 1
    return torch.get_num_threads()


def answer() -> Answer:
    """Return the library of this process, or why there is none. The first call finds out."""
    global _answer
    if _answer is None:
        with _lock:
            if _answer is None:
                _answer = _find()
    return _answer


def _find() -> Answer:
    reason = why_not_here()
    if reason:
        return Answer(reason, None, "", os.getpid())
    wheel = wheel_library.load(processor(), SOURCE)
    if wheel.library is not None:
        origin = f"{wheel.library._name}, built by {wheel.compiler}"
        return Answer("", wheel.library, origin, os.getpid())
    try:
        compiled = compiled_library.load(SOURCE, cache_folder("cpu"), processor())
        return Answer("", compiled, f"{compiled._name}, compiled on this machine", os.getpid())
    except CompilerError as error:
        reason = str(error)
    # RuntimeError: no thread or process can be started, for lack of memory.
    except (OSError, RuntimeError, MemoryError) as error:
        reason = f"needs to be compiled, which failed: {error}"
    if wheel.problem:
        reason += f", and {wheel.problem}, so reinstall fastcyclegan"
    return Answer(reason, None, "", os.getpid())
