"""Produce items in a background thread, ahead of their consumer."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def in_background(items: Generator[T], depth: int) -> Generator[Iterator[T]]:
    """Iterate over ``items`` in a background thread, up to ``depth`` items ahead of the consumer.

    Exceptions from ``items`` are re-raised when the consumer takes the next item. Leaving the ``with`` block
    ends the thread after its current item and closes ``items`` in that thread.
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
        # Pass every exception on to the consumer, which would otherwise wait forever.
        except BaseException as error:
            put(None, error)

    def received() -> Iterator[T]:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="fastcyclegan-loader", daemon=True)
    thread.start()
    try:
        yield received()
    finally:
        stop.set()
        thread.join()
