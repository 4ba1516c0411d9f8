"""Worker processes: order, errors, deaths, stops, signals, and their end when the main process is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan.data.worker_pool import Arrays, loaded_by_workers
from fastcyclegan.errors import StoppedError, UserError

ROOT = Path(__file__).parents[2]


def array_of(number: int, side: int = 700) -> np.ndarray:
    """Return an array that is larger than a pipe, unless ``side`` is small."""
    return np.random.default_rng(number).integers(0, 256, (2, side, side), dtype=np.uint8)


def load(number: int) -> tuple[str, Arrays]:
    """Load two arrays and an empty one, or none for every fifth item."""
    if number % 5 == 4:
        return f"item {number}", []
    arrays = [array_of(number), array_of(number, 3)[:, ::-1], np.empty((0, 4), np.uint8)]
    return f"item {number}", arrays


@pytest.fixture(autouse=True)
def _no_process_or_file_stays() -> Iterator[None]:
    resource_tracker.ensure_running()  # has a pipe of its own, which stays
    before = len(list(Path("/dev/fd").iterdir()))
    yield
    assert not [child for child in multiprocessing.active_children() if child.name == "fastcyclegan-worker"]
    assert len(list(Path("/dev/fd").iterdir())) <= before


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_items_arrive_unchanged_and_in_order(workers: int) -> None:
    with loaded_by_workers(load, range(3, 15), workers) as items:
        for number, (description, tensors) in zip(range(3, 15), items, strict=True):
            expected_description, expected = load(number)
            assert description == expected_description
            assert [tensor.dtype for tensor in tensors] == [torch.uint8] * len(expected)
            assert all(np.array_equal(x, y) for x, y in zip(tensors, expected, strict=True))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_processes(method: str) -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        with loaded_by_workers(load, range(2), 1) as items:
            assert [description for description, _ in items] == ["item 0", "item 1"]
    finally:
        multiprocessing.set_start_method(before, force=True)
        forkserver._forkserver._stop()


@dataclass
class Meeting:
    """Item 0 takes until item 3 is loaded."""

    file: Path

    def __call__(self, number: int) -> tuple[int, Arrays]:
        deadline = time.monotonic() + 60
        if number == 3:
            self.file.touch()
        while number == 0 and not self.file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.file.exists(), [array_of(number)]


def test_a_slow_item_holds_up_no_other_worker(tmp_path: Path) -> None:
    with loaded_by_workers(Meeting(tmp_path / "met"), range(8), 2) as items:
        assert next(items)[0]


@dataclass
class Doing:
    """Loads two items, and then does something else."""

    what: str

    def __call__(self, number: int) -> tuple[str, Arrays]:
        if number == 2:
            exec(self.what)
        return "done", [array_of(number)]


WAY_OUT = "use a lower --num_threads; --num_threads 0 reads images in the main process"


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            UserError,
            f"(killed by SIGKILL), perhaps because memory ran out: {WAY_OUT}",
        ),
        (
            "import faulthandler; faulthandler.disable(); os.kill(os.getpid(), signal.SIGBUS)",
            UserError,
            "(killed by SIGBUS), perhaps because memory",
        ),
        ("os.kill(os.getpid(), signal.SIGUSR2)", UserError, "a loader process died (killed by SIGUSR2): use"),
        ("os._exit(3)", UserError, "a loader process died (exit code 3): use a lower"),
        ("raise UserError('a.png: bad')", UserError, "a.png: bad"),
        (
            "raise OSError(errno.EMFILE, 'Too many open files')",
            UserError,
            "failed (Too many open files): use",
        ),
        ("raise MemoryError", UserError, f"a loader process ran out of memory: {WAY_OUT}"),
        ("{}['name']", RuntimeError, "Traceback (most recent call last)"),
        ("{}['name']", RuntimeError, "KeyError: 'name'"),
        ("raise SystemExit(0)", RuntimeError, "SystemExit: 0"),
    ],
)
def test_errors_and_deaths_reach_the_main_process(what: str, error: type[Exception], message: str) -> None:
    started = time.monotonic()
    with loaded_by_workers(Doing(what), range(100), 2) as items:
        assert next(items)[0] == "done"
        with pytest.raises(error) as raised:
            list(items)
    assert message in str(raised.value)
    assert error is RuntimeError or "\n" not in str(raised.value)
    assert time.monotonic() - started < 60


def test_signals_for_the_process_group_leave_workers_alone() -> None:
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    signals = "; ".join(f"os.kill(os.getpid(), signal.{name})" for name in names)
    with loaded_by_workers(Doing(signals), range(4), 1) as items:
        assert len(list(items)) == 4


def test_too_few_files_for_the_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, made = connection.Pipe, []

    def scarce(duplex: bool) -> object:
        if len(made) == 6:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(duplex)
        return pipe(duplex)

    monkeypatch.setattr(connection, "Pipe", scarce)
    with pytest.raises(
        UserError, match=r"the loader processes cannot be started \(Too many open files\): use a lower --num"
    ):
        loaded_by_workers(load, range(100), 60).__enter__()
    assert len(made) == 6  # one that all share, two workers with two each, and half of a third


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(process: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fails)
    with pytest.raises(
        UserError, match=r"started \(Resource temporarily unavailable\): .* --num_threads 0 reads"
    ):
        loaded_by_workers(load, range(4), 2).__enter__()


def test_a_wait_can_be_stopped() -> None:
    asked: list[float] = []

    def stopping() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    sleeping = Doing("time.sleep(600)")
    with loaded_by_workers(sleeping, range(4), 1, stopping=stopping) as items, pytest.raises(StoppedError):
        list(items)
    assert len(asked) == 3
    assert time.monotonic() - asked[-1] < 60


def test_workers_can_be_left_in_the_middle_of_a_message() -> None:
    with loaded_by_workers(Doing("pass"), range(1000), 2) as items:
        next(items)
        time.sleep(0.2)  # until both workers wait for their full pipes


def state(process: int) -> str:
    """Return the state of a process: "" if it is gone, and Z if nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


MAIN = """
import multiprocessing, os, sys, time
from tests.data.test_worker_pool import Doing
from fastcyclegan.data.worker_pool import loaded_by_workers
with loaded_by_workers(Doing(sys.argv[1]), range(int(sys.argv[2])), 3) as items:
    next(items)
    time.sleep(0.3)
    workers = [child.pid for child in multiprocessing.active_children()]
    other = os.fork()  # holds all files of this process that are not closed on purpose
    if other:
        print(*workers, other, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("what", "items"),
    [("pass", "4"), ("pass", "1000"), ("time.sleep(600)", "4")],
    ids=["idle", "sending", "loading"],
)
def test_no_worker_outlives_a_killed_main_process(what: str, items: str) -> None:
    main = subprocess.Popen(
        [sys.executable, "-c", MAIN, what, items], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert main.stdout is not None
    *workers, other = map(int, main.stdout.readline().split())
    try:
        assert [state(worker) in ("", "Z") for worker in workers] == [False] * 3
        main.kill()
        deadline = time.monotonic() + 60
        while any(state(worker) not in ("", "Z") for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [state(worker) in ("", "Z") for worker in workers] == [True] * 3
        assert state(other) not in ("", "Z")
    finally:
        main.kill()
        for process in (*workers, other):
            if state(process):
                os.kill(process, signal.SIGKILL)
        main.communicate()
