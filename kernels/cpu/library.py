"""Compile the C++ kernels for this machine's processor once, and load them.

The files in ``source`` have a plain C interface and use no headers of PyTorch. They are compiled at first use
by the machine's C++ compiler (a few seconds), and the library is kept in the cache folder. Its name has a
hash of everything that it was made from, and its last bytes are a checksum, so a damaged file is not loaded
but made anew. The file appears there whole or not at all, so processes can do this at the same time.
Libraries that have not been used for 30 days are removed when another one is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .._cache import cache_folder
from ._compiler import CompilerError, compile_library, find_compiler, fingerprint

_SOURCE = Path(__file__).with_name("source")
_PROCESSORS = Path("/proc/cpuinfo")
_CHECKSUM = hashlib.sha256().digest_size
_UNUSED = 30 * 24 * 3600
# Files of a build that are older than this are those of a process that was killed.
_ABANDONED = 3600

# The instructions that the compiler may use for each class, by their names in /proc/cpuinfo.
_AVX2 = frozenset(("avx2", "fma", "f16c", "bmi2"))
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AMX = frozenset(("amx_tile", "amx_bf16"))
# The values of ONEDNN_MAX_CPU_ISA that keep oneDNN from using AMX.
_BELOW_AMX = frozenset(
    "sse41 avx avx2 avx2_vnni avx2_vnni_2 avx512_core avx512_core_vnni avx512_core_bf16 avx512_core_fp16"
    " avx10_1_512".split()
)


# --- The processor ------------------------------------------------------------------------------------------


def processor() -> str:
    """Return the class of this processor: "amx", "avx512", "avx2", or "" if the kernels do not support it.

    Like PyTorch's operators it obeys ``ATEN_CPU_CAPABILITY``, and ``ONEDNN_MAX_CPU_ISA`` can rule out AMX.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and _instructions() >= _AVX512:
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
        if _instructions() >= _AMX and limit.lower() not in _BELOW_AMX:
            return "amx"
        return "avx512"
    if capability in ("AVX2", "AVX512") and _instructions() >= _AVX2:
        return "avx2"
    return ""


@functools.cache
def _instructions() -> frozenset[str]:
    """Return the names of the processor's extensions."""
    with contextlib.suppress(OSError):
        for line in _PROCESSORS.read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def _why_not_here() -> str:
    """Return why this machine cannot run the kernels, whatever its compiler, or "" if it can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"needs Linux on x86-64, got {platform.system()} on {platform.machine()}"
    if processor():
        return ""
    limit = os.environ.get("ATEN_CPU_CAPABILITY")
    if limit is not None:
        return f"needs a processor with AVX2 (ATEN_CPU_CAPABILITY is {limit!r})"
    return "needs a processor with AVX2"


# --- The library of this process ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """The library, or the reason why there is none, and the process that found out."""

    reason: str
    library: ctypes.CDLL | None
    process: int


_answer: _Answer | None = None
_lock = threading.Lock()


def _renew_lock() -> None:
    """Replace the lock in a forked process: another thread of its parent could have held it."""
    global _lock
    _lock = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)


def why_not_cpp() -> str:
    """Return why the C++ kernels cannot be used, as the end of "impl='cpp' ...", or "" if they can.

    The first call compiles the kernels if they are not in the cache. The answer is kept for the process.
    """
    return _find().reason


# Make torch.compile call this function instead of tracing it, see dispatch.py.
why_not_cpp._dynamo_marked_constant = True  # type: ignore[attr-defined]
processor._dynamo_marked_constant = True  # type: ignore[attr-defined]


def library() -> ctypes.CDLL:
    """Return the loaded library. Raises RuntimeError with the reason if there is none."""
    answer = _find()
    if answer.library is None:
        raise RuntimeError(f"the C++ kernels cannot be used: impl='cpp' {answer.reason}")
    return answer.library


def threads() -> int:
    """Return how many threads a kernel should use: PyTorch's setting, or 1 after a fork.

    In a forked process, GNU OpenMP would wait for the threads that its parent had, forever.
    """
    if _answer is not None and _answer.process != os.getpid():
        return 1
    return torch.get_num_threads()


def _find() -> _Answer:
    global _answer
    if _answer is None:
        with _lock:
            if _answer is None:
                _answer = _make_answer()
    return _answer


def _make_answer() -> _Answer:
    reason = _why_not_here()
    loaded = None
    if not reason:
        try:
            loaded = load(_SOURCE, cache_folder("cpu"), processor())
        except CompilerError as error:
            reason = str(error)
        # RuntimeError: no thread or process can be started, for lack of memory.
        except (OSError, RuntimeError, MemoryError) as error:
            reason = f"needs to be compiled, which failed: {error}"
    return _Answer(reason, loaded, os.getpid())


# --- Files --------------------------------------------------------------------------------------------------


def load(source: Path, cache: Path, processor: str) -> ctypes.CDLL:
    """Load the library of the C++ files in ``source`` from the folder ``cache``; make it if it is not there.

    If ``cache`` cannot be written, if other users can write it, or if no library can be loaded from it (it is
    mounted with noexec), this process uses a library in a temporary folder. Raises CompilerError if there is
    no compiler or if it fails, and OSError if there is no temporary folder.
    """
    compiler = find_compiler()
    file = cache / f"kernels-{processor}-{fingerprint(compiler, processor, source)}.so"
    content = _content(file)
    if content:
        with contextlib.suppress(OSError):
            loaded = ctypes.CDLL(str(file))
            _mark_used(file)
            return loaded
    with _build_folder() as folder:
        built = folder / file.name
        if content:
            built.write_bytes(content)
        else:
            compile_library(compiler, processor, source, built)
        try:
            return ctypes.CDLL(str(built)) if content else _load_built(built, file)
        except OSError as error:
            # The error begins with the file's name.
            reason = str(error).removeprefix(f"{built}: ")
            raise compiler.error(f"makes a library that cannot be loaded: {reason}") from None


def _load_built(built: Path, file: Path) -> ctypes.CDLL:
    """Copy the library ``built`` to ``file`` in the cache and load it, or load it where it is."""
    try:
        _keep(built, file)
        return ctypes.CDLL(str(file))
    except OSError:
        try:
            return ctypes.CDLL(str(built))
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            raise


def _keep(built: Path, file: Path) -> None:
    """Copy the library ``built`` to ``file``, with its checksum. Raises OSError if that is not possible."""
    folder = file.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_safe(folder):
        raise PermissionError(f"{folder}: other users can write it")
    _remove_old(folder)
    content = built.read_bytes()
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content + hashlib.sha256(content).digest())
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _content(file: Path) -> bytes:
    """Return the bytes of a library in the cache, or b"" if it is missing, damaged or not to be trusted.

    A damaged library must not be loaded: reading the missing part of a shortened one kills the process.
    """
    try:
        if not _is_safe(file.parent) or not _is_ours(file, 0o022):
            return b""
        data = file.read_bytes()
    except OSError:
        return b""
    content, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    return content if hashlib.sha256(content).digest() == checksum else b""


def _is_safe(folder: Path) -> bool:
    """Return whether no other user can write ``folder`` or replace it. Root can always do so.

    The group may write the folder around it: with the umask 002, all folders have such permissions, and the
    group is the user's own.
    """
    return _is_ours(folder, 0o022) and _is_ours(folder.parent, 0o002)


def _is_ours(path: Path, others: int) -> bool:
    """Return whether ``path`` is this user's or root's, without any of the permissions ``others``."""
    fact = path.stat()
    return fact.st_uid in (os.geteuid(), 0) and not fact.st_mode & others


def _mark_used(file: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(file)


def _remove_old(folder: Path) -> None:
    """Remove libraries that were not used for long, and what killed processes left in ``folder``."""
    for pattern, seconds in (("kernels-*.so", _UNUSED), (".*.partial", _ABANDONED)):
        for file in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > seconds:
                    file.unlink()


@contextlib.contextmanager
def _build_folder() -> Iterator[Path]:
    """Make a private temporary folder and remove it afterwards. A loaded library can be removed.

    Also removes the folders of builds that were killed.
    """
    prefix = f"fastcyclegan-cpu-{os.geteuid()}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            fact = folder.lstat()
            if fact.st_uid == os.geteuid() and time.time() - fact.st_mtime > _ABANDONED:
                shutil.rmtree(folder)
    # Not a TemporaryDirectory: a process forked by another thread would remove it at its exit.
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
