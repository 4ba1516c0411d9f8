"""Produce items in background threads, ahead of their consumer, with waits that can be stopped.

The consumer never waits for more than a moment without asking whether the run should stop, and it leaves a
thread behind that hangs, for example in a read from a network disk that is gone. Such a thread does not keep
Python from exiting. Threads that do not hang have ended before Python exits, because one that is in a call of
torch at that moment aborts the process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from fastcyclegan.errors import StoppedError, UserError

T = TypeVar("T")
Ask = Callable[[], object]
"""Asks threads to end, without waiting for them."""
Stopping = Callable[[], bool]
"""Returns whether the run should stop. It is called in the consumer's thread, several times per second."""

POLL = 0.2
"""Seconds between two calls of ``stopping`` while a consumer waits."""
PATIENCE = 3.0
"""Seconds to wait for a thread or a process to end before it is left behind."""


def never() -> bool:
    """Return False: the run is not asked to stop."""
    return False


def raise_if(stopping: Stopping) -> None:
    """Raise StoppedError if ``stopping`` returns True."""
    if stopping():
        raise StoppedError


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Run ``work`` in a new daemon thread. Raises UserError if the system allows no more threads."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise UserError(
            f"a thread that reads images cannot be started ({error}): the limit on processes or memory is"
            " reached (see ulimit -u); use a lower --num_threads"
        ) from None
    return thread


def join_all(threads: Iterable[threading.Thread]) -> None:
    """Wait until all ``threads`` have ended, but not for those that take longer than PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))


# The threads whose ``with`` block has not been left, and what asks them to end.
_working: dict[Ask, list[threading.Thread]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_working.clear)


@contextlib.contextmanager
def _ending(threads: list[threading.Thread], ask: Ask) -> Generator[None]:
    """End all ``threads`` with ``ask`` after the body, or when Python exits before the body is left."""
    _working[ask] = threads
    try:
        yield
    finally:
        _working.pop(ask, None)
        ask()
        join_all(threads)


@atexit.register
def _end_threads() -> None:
    working = dict(_working)
    for ask in working:
        ask()
    join_all(thread for threads in working.values() for thread in threads)


@contextlib.contextmanager
def in_background(items: Generator[T], depth: int, stopping: Stopping = never) -> Generator[Iterator[T]]:
    """Iterate over ``items`` in a background thread, up to ``depth`` items ahead of the consumer.

    Exceptions from ``items`` are re-raised when the consumer takes the next item. A consumer that has to wait
    raises StoppedError once ``stopping`` returns True. Leaving the ``with`` block ends the thread after its
    current item and closes ``items`` in that thread; a thread that hangs is left behind.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((item, error), timeout=0.05)

    def work() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    put(item, None)
                    if stop.is_set():
                        return
            put(None, StopIteration())
        # Pass every exception on to the consumer, which would otherwise wait until it is stopped.
        except BaseException as error:
            put(None, error)

    def received() -> Iterator[T]:
        while True:
            item, error = _taken(ready, thread, stopping)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise_if(stopping)  # what asked the run to stop may have caused the error, too
                raise error
            yield item  # type: ignore[misc]

    thread = start_thread(work, "fastcyclegan-loader")
    with _ending([thread], stop.set):
        yield received()


def _taken(ready: queue.Queue[T], thread: threading.Thread, stopping: Stopping) -> T:
    """Return the next item of ``ready``, which ``thread`` fills."""
    while True:
        alive = thread.is_alive()
        with contextlib.suppress(queue.Empty):
            return ready.get(timeout=POLL)
        raise_if(stopping)
        if not alive:
            raise RuntimeError(f"the thread {thread.name} ended without a result")


class ReadingThreads:
    """A pool of threads for reads that can hang.

    Unlike those of ThreadPoolExecutor, its threads do not keep Python from exiting. Leaving the ``with``
    block cancels the calls that have not started and waits for the others, but not for one that hangs.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.closed = False
        self._ending = _ending(self.threads, self._close)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call ``function(*arguments)`` in one of the threads, and return the future result."""
        future: Future[T] = Future()
        self.calls.put((future, lambda: function(*arguments)))
        if len(self.threads) < self.count:
            self.threads.append(start_thread(self._work, "fastcyclegan-read"))
        return future

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            self._run(*call)
            del call  # the result is large, and must not live on until the next call

    def _run(self, future: Future[Any], function: Callable[[], Any]) -> None:
        if self.closed:
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as error:  # the one who waits for the future gets it
            future.set_exception(error)
        else:
            future.set_result(result)

    def _close(self) -> None:
        self.closed = True
        for _ in self.threads:
            self.calls.put(None)

    def __enter__(self) -> ReadingThreads:
        self._ending.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.__exit__(None, None, None)


def result_of(future: Future[T], stopping: Stopping = never) -> T:
    """Wait for ``future`` and return its result. Raises StoppedError once ``stopping`` returns True."""
    while not future.done():
        wait([future], POLL)
        if not future.done():
            raise_if(stopping)
    return future.result()
