"""The lock of a run's folder: one process at a time writes there.

The lock is an advisory lock of the operating system on the file ``.lock`` in the folder, so it is free as
soon as its process is gone, however it ended. The file names the process for messages.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fastcyclegan.checkpoints.run_files import LOCK
from fastcyclegan.errors import UserError
from fastcyclegan.files.json_file import parse_json
from fastcyclegan.files.schema import record, text, whole

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What a holder writes to the file.
_HOLDER = record({"pid": whole(1, 2**31 - 1), "host": text(), "command": text(), "since": text()})
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """The lock of ``folder``, which must exist. Released by ``release``, and when the process ends.

    Raises UserError, with a message that names the other process, if one holds the lock, and OSError if the
    folder cannot be written to. ``problem`` is the reason why the file system of the folder has no locks, or
    "".
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.problem = folder, ""
        self.file = folder / LOCK
        self.descriptor: int | None = None
        while self.descriptor is None:
            self.descriptor = self._locked()
        _held.add(self)
        self._describe_holder(self.descriptor)
        self._identity = _identity(folder)

    def _locked(self) -> int | None:
        """Open and lock the file. Returns None if it was replaced meanwhile and must be opened again."""
        descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.problem = _lock(descriptor)
            if self.problem:
                _refuse_if_alive(descriptor)
            if self._is_current(descriptor):
                return descriptor
        except BlockingIOError:
            holder = _describe(_holder(descriptor))
            os.close(descriptor)
            raise UserError(
                f"{self.folder} is in use by {holder}: stop it first, or use another --name"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _is_current(self, descriptor: int) -> bool:
        """Return whether ``descriptor`` is still the file of that name, which its last holder deletes."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.file.stat())
        except FileNotFoundError:
            return False

    def _describe_holder(self, descriptor: int) -> None:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:500]}
        text = json.dumps({**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n"
        # The message of another process is less informative if the disk is full, but the lock is held.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(errors="replace"), 0)

    @property
    def is_held(self) -> bool:
        """Whether the lock was not released yet."""
        return self.descriptor is not None

    def require(self) -> None:
        """Raise UserError if the folder was deleted, moved or replaced since it was locked.

        If only the lock's file was deleted, the lock is acquired again.
        """
        if self.descriptor is None or self._is_current(self.descriptor):
            return
        if _identity(self.folder) != self._identity:
            raise UserError(
                f"{self.folder} was deleted, moved or replaced while this run was writing to it, so the run"
                " ends"
            )
        again = RunLock(self.folder)
        os.close(self.descriptor)
        self.descriptor, again.descriptor = again.descriptor, None

    def release(self) -> None:
        """Delete the file and release the lock. Can be called more than once."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is None:
            return
        # Deleted while the lock is held, so that no other process can hold it by this name.
        with contextlib.suppress(OSError):
            if self._is_current(descriptor):
                self.file.unlink()
        os.close(descriptor)

    def close_in_child(self) -> None:
        """Close the file in a forked child, which would otherwise keep the lock after its parent's end."""
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells ``folder`` from another one of the same name, or None if there is no folder."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _lock(descriptor: int) -> str:
    """Lock the file at ``descriptor``. Return the reason why its file system has no locks, or "".

    Raises BlockingIOError if another process holds the lock.
    """
    if fcntl is None:
        return "this operating system has no such locks"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            return f"its file system has no locks ({os.strerror(error.errno)})"
        raise
    return ""


def _refuse_if_alive(descriptor: int) -> None:
    """Raise BlockingIOError if the process that the file names is running on this machine.

    This is for file systems without locks. It cannot see processes on other machines.
    """
    holder = _holder(descriptor)
    if holder.get("host") != socket.gethostname() or holder.get("pid") == os.getpid():
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(holder["pid"], 0)
        raise BlockingIOError


def _holder(descriptor: int) -> dict[str, Any]:
    """Return what the last holder wrote to the file at ``descriptor``, or {} if that is unreadable."""
    try:
        holder: dict[str, Any] = parse_json(os.pread(descriptor, 10_000, 0))
        _HOLDER(holder, "")
    except (OSError, ValueError):
        return {}
    return holder


def _describe(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another process"
    command = " ".join(holder["command"].split())[:100]
    return f"process {holder['pid']} on {holder['host']}, running since {holder['since']} ({command})"


def _after_fork() -> None:
    for lock in list(_held):
        lock.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
