"""Compile the C++ kernels once with the machine's compiler, keep the library in the cache, and load it.

The name of the file has a hash of everything that it was made from, and its last bytes are a checksum, so a
damaged file is not loaded but made anew. The file appears there whole or not at all, so processes can do this
at the same time. Libraries that have not been used for 30 days are removed when another one is made.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .._cache import user_number
from ._compiler import compile_library, find_compiler, fingerprint, library_suffix

_CHECKSUM = hashlib.sha256().digest_size
_UNUSED = 30 * 24 * 3600
# Files of a build that are older than this are those of a process that was killed.
_ABANDONED = 3600


def load(source: Path, cache: Path, processor: str) -> ctypes.CDLL:
    """Load the library of the C++ files in ``source`` from the folder ``cache``; make it if it is not there.

    If ``cache`` cannot be written, if other users can write it, or if no library can be loaded from it (it is
    mounted with noexec), this process uses a library in a temporary folder. Raises CompilerError if there is
    no compiler or if it fails, and OSError if there is no temporary folder.
    """
    compiler = find_compiler()
    file = cache / f"kernels-{processor}-{fingerprint(compiler, processor, source)}{library_suffix()}"
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
    if sys.platform == "win32":
        # A user's folders have no permissions for others there.
        return True
    fact = path.stat()
    return fact.st_uid in (user_number(), 0) and not fact.st_mode & others


def _mark_used(file: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(file)


def _remove_old(folder: Path) -> None:
    """Remove libraries that were not used for long, and what killed processes left in ``folder``."""
    for pattern, seconds in (("kernels-*", _UNUSED), (".*.partial", _ABANDONED)):
        for file in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > seconds:
                    file.unlink()


@contextlib.contextmanager
def _build_folder() -> Iterator[Path]:
    """Make a private temporary folder and remove it afterwards. A loaded library can be removed.

    Also removes the folders of builds that were killed.
    """
    prefix = f"fastcyclegan-cpu-{user_number()}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            fact = folder.lstat()
            if fact.st_uid == user_number() and time.time() - fact.st_mtime > _ABANDONED:
                shutil.rmtree(folder)
    # Not a TemporaryDirectory: a process forked by another thread would remove it at its exit.
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
