"""The lock of a run's folder: one holder at a time, released however the holder ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastcyclegan.checkpoints.run_files import LOCK
from fastcyclegan.errors import UserError
from fastcyclegan.training import run_lock
from fastcyclegan.training.run_lock import RunLock
from tests.files.altered_values import altered_json
from tests.training.runs import forked


def test_the_holder_is_named_and_a_released_lock_leaves_nothing(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on .*, running since \d+-"):
        RunLock(tmp_path)
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path).release()


def test_a_dead_holder_is_replaced_even_if_its_workers_live(tmp_path: Path) -> None:
    release = os.pipe()

    def hold() -> str:
        lock = RunLock(tmp_path)
        worker = os.fork()
        if worker == 0:
            os.close(release[1])
            os.read(release[0], 1)
            os._exit(0)
        assert lock.is_held
        return str(os.getpid())

    output = forked(hold, until=release)
    holder = int(output.readline())
    with pytest.raises(UserError, match=rf"is in use by process {holder} on "):
        RunLock(tmp_path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert (tmp_path / LOCK).exists()
    RunLock(tmp_path).release()
    for end in release:
        os.close(end)
    output.close()


def test_a_folder_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    lock = RunLock(folder)
    lock.require()
    folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="r was deleted, moved or replaced while this run"):
        lock.require()
    folder.mkdir()
    other = RunLock(folder)
    with pytest.raises(UserError, match="r was deleted, moved or replaced while this run"):
        lock.require()
    lock.release()
    # The lock file of the other run is not deleted.
    assert (folder / LOCK).exists()
    other.release()


def test_a_lock_file_that_was_deleted_is_locked_again(tmp_path: Path) -> None:
    """Someone may delete hidden files. The run goes on, unless another run took the folder meanwhile."""
    lock = RunLock(tmp_path)
    (tmp_path / LOCK).unlink()
    lock.require()
    with pytest.raises(UserError, match="is in use by process"):
        RunLock(tmp_path)
    (tmp_path / LOCK).unlink()
    other = RunLock(tmp_path)
    with pytest.raises(UserError, match="is in use by process"):
        lock.require()
    lock.release()
    other.release()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lack of locks is reported, and a live process that the file names is still noticed."""

    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4))
    lock = RunLock(tmp_path)
    assert lock.problem == "its file system has no locks (No locks available)"
    holder = json.loads((tmp_path / LOCK).read_text())
    parent = {**holder, "pid": os.getppid()}
    (tmp_path / LOCK).write_text(json.dumps(parent))
    with pytest.raises(UserError, match=f"is in use by process {os.getppid()} on"):
        RunLock(tmp_path)
    for other in ({**holder, "pid": 2**22 + 1}, {**parent, "host": "elsewhere"}, {"pid": "x"}, []):
        (tmp_path / LOCK).write_text(json.dumps(other))
        RunLock(tmp_path)


def test_an_unreadable_lock_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_bytes(b"\xff\x00 not json")
    lock = RunLock(tmp_path)
    (tmp_path / LOCK).write_bytes(b"\xff")
    with pytest.raises(UserError, match="is in use by another process"):
        RunLock(tmp_path)
    lock.release()


def test_altered_lock_files_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file system has no locks, and the process that the file names counts."""

    def refuse(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    lock = RunLock(tmp_path)
    good = json.loads((tmp_path / LOCK).read_text())
    for seed in range(100):
        (tmp_path / LOCK).write_bytes(altered_json(random.Random(seed), {**good, "pid": os.getppid()}))
        with pytest.raises(UserError, match=r"is in use by (process|another process)"):
            RunLock(tmp_path)
    lock.release()
    monkeypatch.setattr(run_lock, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4))
    for seed in range(100):
        (tmp_path / LOCK).write_bytes(altered_json(random.Random(seed), {**good, "pid": 2**22 + 1}))
        with contextlib.suppress(UserError):  # the number may be that of a process
            RunLock(tmp_path).release()


def test_many_processes_never_hold_the_lock_together(tmp_path: Path) -> None:
    """Each process writes its number while it holds the lock, and finds it unchanged before it lets go.

    Acquiring a lock whose file its holder deletes at that moment is the difficult case.
    """
    owner, end = tmp_path / "owner", time.monotonic() + 1.5

    def compete() -> str:
        held = 0
        while time.monotonic() < end:
            try:
                lock = RunLock(tmp_path)
            except UserError:
                continue
            owner.write_text(str(os.getpid()))
            time.sleep(0.0005)
            if owner.read_text() != str(os.getpid()):
                return "overlap"
            held += 1
            lock.release()
        return str(held)

    release = os.pipe()
    outputs = [forked(compete, until=release) for _ in range(4)]
    counts = [output.readline().strip() for output in outputs]
    for pipe in release:
        os.close(pipe)
    for output in outputs:
        output.close()
    assert "overlap" not in counts
    assert sum(map(int, counts)) > 50
