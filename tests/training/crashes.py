"""Let a training process fail at a chosen call of the file system, as crash tests of databases do.

``install`` replaces Python's functions that change files in the current process. Each call on something in
the folder of runs is a ``Point``, and is listed in a report. At one of them, the process can kill itself or
the call can fail. A killed or failed write has written half of its data.
"""

from __future__ import annotations

import builtins
import functools
import io
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcyclegan.training.state_writer import StateWriter
from tests.training.runs import at_once

# Calls that need space on the disk.
FILLING = ("write", "close", "mkdir")
# Calls that only remove something and thus do not need any.
REMOVING = ("unlink", "rmdir", "truncate")


@dataclass(frozen=True)
class Point:
    """The ``count``-th call (from 1) of one kind on one path, which is relative to the folder of runs."""

    kind: str
    path: str
    count: int

    def __str__(self) -> str:
        return f"{self.kind} {self.path} ({self.count})"


@dataclass(frozen=True)
class Crash:
    """What happens at ``point``.

    kill: the process is killed right before the call, or in the middle of a write; killed after: right after
    the call; error: the call fails with the number ``error``; full: so does every later call that needs space
    on the disk.
    """

    action: str
    point: Point
    error: int = 0

    def __str__(self) -> str:
        if self.action == "error":
            return f"{os.strerror(self.error)} at {self.point}"
        words = {"kill": "kill before", "killed after": "kill after", "full": "disk full from"}
        return f"{words[self.action]} {self.point}"


def read_points(report: Path) -> list[Point]:
    """Return the calls that a report lists, in order."""
    return [Point(*json.loads(line)) for line in report.read_text().splitlines()]


def distinct(points: list[Point]) -> list[Point]:
    """Return the first, the middle and the last of the many calls on a file that only gets longer.

    These are the writes between two times that a file is opened, all calls on the events of tensorboard, and
    those on all images of a folder of the built-in dataset. All other calls are returned.
    """
    opened: Counter[str] = Counter()
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        path = re.sub(r"(dataset/\w+)/.*", r"\1/", point.path)
        many = path.endswith(("tfevents", "/"))
        opened[path] += point.kind == "open" and not many
        place = 0 if point.kind == "write" or many else point.count
        groups.setdefault((point.kind, path, opened[path] + place), []).append(point)
    chosen = {group[number] for group in groups.values() for number in (0, len(group) // 2, -1)}
    return [point for point in points if point in chosen]


def install(runs: str, report: str, crash: dict[str, Any] | None) -> None:
    """Replace the functions of this process. ``crash`` has the fields of Crash, its point those of Point.

    No save is left out, so that every run makes the same calls.
    """
    StateWriter.write = at_once(StateWriter.write)  # type: ignore[method-assign]
    chosen = None
    if crash is not None:
        chosen = Crash(**{**crash, "point": Point(**crash["point"])})
    _Watch(runs, report, chosen).install()


class _Watch:
    def __init__(self, runs: str, report: str, crash: Crash | None) -> None:
        self.runs, self.crash = os.path.realpath(runs), crash
        self.full = False
        self.counts: Counter[tuple[str, str]] = Counter()
        self.lock = threading.Lock()
        self.report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.write, self.readlink, self.truncate = os.write, os.readlink, os.truncate

    def path_of(self, path: Any, folder: int | None = None) -> str | None:
        """Return ``path`` relative to the folder of runs, or None if it is elsewhere."""
        if isinstance(path, int):
            path = self.readlink(f"/proc/self/fd/{path}")
        file = Path(os.fsdecode(path))
        if folder is not None:
            file = Path(self.readlink(f"/proc/self/fd/{folder}"), file)
        path = str(file.parent.resolve() / file.name)
        if path != self.runs and not path.startswith(f"{self.runs}/"):
            return None
        path = os.path.relpath(path, self.runs)
        path = re.sub(rf"\b{os.getpid()}\b", "PID", path)
        return re.sub(r"(events\.out\.tfevents).*", r"\1", path)

    def action(self, kind: str, path: str) -> str:
        """Count a call and return what is to happen at it: "", or an action of Crash."""
        with self.lock:
            self.counts[kind, path] += 1
            point = Point(kind, path, self.counts[kind, path])
        self.write(self.report, (json.dumps([kind, path, point.count]) + "\n").encode())
        if self.crash is not None and point == self.crash.point:
            self.full = self.crash.action == "full"
            return self.crash.action
        return "full" if self.full and kind in FILLING else ""

    def failure(self, *file: Any) -> OSError:
        assert self.crash is not None
        return OSError(self.crash.error, os.strerror(self.crash.error), *file)

    def called(self, kind: str, path: str, call: Callable[[], Any], *file: Any) -> Any:
        """Do ``call``, unless the process fails at it. ``file`` is the name for the error, if it has one."""
        action = self.action(kind, path)
        if action == "kill":
            kill()
        if action in ("error", "full"):
            raise self.failure(*file)
        result = call()
        if action == "killed after":
            kill()
        return result

    def watched(self, kind: str, original: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        """Return a function that counts the calls of ``original``, whose path is argument ``place``."""

        @functools.wraps(original)
        def function(*args: Any, **options: Any) -> Any:
            folder = options.get("dst_dir_fd" if place else "dir_fd")
            path = self.path_of(args[place], folder)
            if path is None:
                return original(*args, **options)
            file = () if isinstance(args[place], int) else (args[place],)
            return self.called(kind, path, lambda: original(*args, **options), *file)

        return function

    def install(self) -> None:
        for name in ("mkdir", "rmdir", "unlink", "truncate", "fsync", "ftruncate", "fdatasync"):
            kind = {"ftruncate": "truncate", "fdatasync": "fsync"}.get(name, name)
            setattr(os, name, self.watched(kind, getattr(os, name)))
        os.remove = os.unlink
        for name in ("rename", "replace", "link", "symlink"):
            kind = {"replace": "rename", "symlink": "link"}.get(name, name)
            setattr(os, name, self.watched(kind, getattr(os, name), 1))
        os.open = self.opening(os.open)
        os.write = self.writing(os.write)
        builtins.open = io.open = self.opening_files(builtins.open)
        io.FileIO = self.raw_files()  # type: ignore[misc]
        self.write_in_order()

    def opening(self, original: Callable[..., int]) -> Any:
        counted = self.watched("open", original)

        def function(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            changes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            return (counted if changes else original)(path, flags, mode, dir_fd=dir_fd)

        return function

    def writing(self, original: Callable[..., int]) -> Any:
        def function(number: int, data: Any) -> int:
            path = self.path_of(number)
            if path is None:
                return original(number, data)
            action = self.action("write", path)
            if action:
                original(number, data[: len(data) // 2])
            if action == "kill":
                kill()
            if action:
                raise self.failure()
            return original(number, data)

        return function

    def opening_files(self, original: Callable[..., Any]) -> Any:
        def function(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            reads = not set(mode) & set("wax+")
            path = None if reads or isinstance(file, int) else self.path_of(file)
            if path is None:
                return original(file, mode, *args, **options)
            opened = self.called("open", path, lambda: original(file, mode, *args, **options), file)
            return _File(opened, self, path)

        return function

    def raw_files(self) -> type[io.FileIO]:
        """Return a class to be used as io.FileIO, also by isinstance."""
        opening = self.opening_files(io.FileIO)

        class RawFile(io.FileIO):
            def __new__(cls, *args: Any, **options: Any) -> Any:
                return opening(*args, **options)

        return RawFile

    def write_in_order(self) -> None:
        """Make the thread that writes states end before training continues.

        Otherwise it would depend on its speed which iterations save a state.
        """
        start = threading.Thread.start

        def function(thread: threading.Thread) -> None:
            start(thread)
            if thread.name == "state-writer":
                thread.join()

        threading.Thread.start = function  # type: ignore[method-assign,assignment]


class _File:
    """A file that is open for writing, whose writes and close are counted."""

    def __init__(self, file: Any, watch: _Watch, path: str) -> None:
        self._file, self._watch, self._path = file, watch, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Any:
        return iter(self._file)

    def write(self, data: Any) -> int:
        action = self._watch.action("write", self._path)
        if action:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
        if action == "kill":
            kill()
        if action:
            raise self._watch.failure()
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def truncate(self, size: int | None = None) -> int:
        return self._watch.called("truncate", self._path, lambda: self._file.truncate(size))

    def close(self) -> None:
        """Close the file. If that fails, what was not written before is lost."""
        if self._file.closed:
            return
        action = self._watch.action("close", self._path)
        if action == "kill":
            kill()
        written = os.fstat(self._file.fileno()).st_size
        self._file.close()
        if action:
            self._watch.truncate(self._file.name, written)
            raise self._watch.failure()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
