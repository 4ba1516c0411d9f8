"""Items and reads in background threads: their order and errors, how far they run ahead, how they end.

No thread that hangs keeps its consumer, or Python, from ending.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from fastcyclegan.data import background
from fastcyclegan.data.background import ReadingThreads, in_background, result_of
from fastcyclegan.errors import StoppedError, UserError


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event for which threads wait until the test has ended. They are left behind after 0.3 s."""
    monkeypatch.setattr(background, "PATIENCE", 0.3)
    event = threading.Event()
    yield event
    event.set()


def test_keeps_the_order_and_runs_ahead_only_to_its_depth() -> None:
    made: list[int] = []

    def numbers() -> Generator[int]:
        for n in range(100):
            made.append(n)
            yield n

    with in_background(numbers(), depth=3) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 60
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(made) == 5  # three are queued, one is waiting to be queued, one was consumed
        assert list(items) == list(range(1, 100))


def test_reraises_exceptions_of_its_items_and_closes_them() -> None:
    closed = threading.Event()

    def failing() -> Generator[int]:
        try:
            yield 1
            raise KeyError("in the thread")
        finally:
            closed.set()

    with in_background(failing(), 2) as items:
        assert next(items) == 1
        with pytest.raises(KeyError, match="in the thread"):
            next(items)
    assert closed.wait(60)
    closed.clear()
    with in_background(failing(), 1) as items:  # the consumer stops early
        next(items)
    assert closed.wait(60)
    assert not any(thread.name == "fastcyclegan-loader" for thread in threading.enumerate())


def stops_after(calls: int) -> tuple[list[float], background.Stopping]:
    """Return a ``stopping`` that returns True at the given call, and the times of its calls."""
    asked: list[float] = []

    def stopping() -> bool:
        asked.append(time.monotonic())
        return len(asked) >= calls

    return asked, stopping


def test_a_wait_for_an_item_that_never_comes_can_be_stopped(hang: threading.Event) -> None:
    def hanging() -> Generator[int]:
        yield 1
        hang.wait()

    asked, stopping = stops_after(3)
    with in_background(hanging(), 2, stopping) as items:
        assert next(items) == 1
        with pytest.raises(StoppedError):
            next(items)
    assert len(asked) == 3
    assert time.monotonic() - asked[-1] < 60


def test_an_error_while_the_run_stops_is_not_reported() -> None:
    """The signal that stops a run may have reached other processes, and broken what an item needs."""

    def failing() -> Generator[int]:
        yield 1
        raise UserError("a process died")

    with in_background(failing(), 2, lambda: True) as items:
        assert next(items) == 1
        with pytest.raises(StoppedError):
            next(items)


def test_a_thread_that_ended_without_a_word_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "run", lambda thread: None)
    with (
        in_background((n for n in range(3)), 2) as items,
        pytest.raises(RuntimeError, match="the thread fastcyclegan-loader ended without a result"),
    ):
        next(items)


def test_a_thread_that_cannot_be_started_is_a_line_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(
        UserError, match=r"cannot be started \(can't start new thread\): .* lower --num_threads"
    ):
        in_background((n for n in range(3)), 2).__enter__()


def test_reads_run_in_threads_and_those_not_started_are_cancelled(hang: threading.Event) -> None:
    with ReadingThreads(2) as threads:
        results = [threads.submit(divmod, n, 3) for n in range(50)]
        assert [result_of(result) for result in results] == [divmod(n, 3) for n in range(50)]
        with pytest.raises(ZeroDivisionError):
            result_of(threads.submit(divmod, 1, 0))
        assert len(threads.threads) == 2
    assert not any(thread.is_alive() for thread in threads.threads)
    started = time.monotonic()
    with ReadingThreads(1) as threads:
        reads: list[Future[object]] = [threads.submit(hang.wait), threads.submit(hang.wait)]
        with pytest.raises(StoppedError):
            result_of(reads[0], stops_after(2)[1])
    assert time.monotonic() - started < 60
    hang.set()
    result_of(reads[0])
    threads.threads[0].join(60)
    assert reads[1].cancelled()


def test_python_exits_while_a_read_hangs() -> None:
    code = (
        "import time; from fastcyclegan.data.background import ReadingThreads\n"
        "threads = ReadingThreads(2); threads.submit(time.sleep, 600); print('end')"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=True,
        capture_output=True,
        text=True,
    )
    assert finished.stdout == "end\n"


WORK = """
import sys, torch
from fastcyclegan.data import background
from fastcyclegan.data.background import ReadingThreads, in_background

background.PATIENCE = 60  # also on a busy machine

def work():
    x = torch.ones(1000)
    for _ in range(100_000):
        x = x + 1

def items():
    yield 1
    work()
    yield 2
"""
ENTERED = {
    "in_background": "context = in_background(items(), 1)\nnext(context.__enter__())",
    "ReadingThreads": "context = ReadingThreads(2)\ncontext.__enter__()\ncontext.submit(work)",
}


@pytest.mark.parametrize("entered", ENTERED)
def test_python_exits_while_threads_are_working(entered: str) -> None:
    """A thread that is in the middle of a call of torch when Python is gone would abort the process."""
    code = f"{WORK}{ENTERED[entered]}\nsys.modules['keeps'] = context\nprint('end')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "end\n", "")
