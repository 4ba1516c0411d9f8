"""Work ahead of its consumer, in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def in_background(items: Generator[T], depth: int) -> Generator[Iterator[T]]:
    """Give what ``items`` gives, made by a thread up to ``depth`` items ahead. Its exceptions are raised
    where the items are taken.

    Leaving the block ends the thread, after the item that it is at, and closes ``items`` in it.
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
        # Whatever it is belongs to the consumer, who would wait for ever without it.
        except BaseException as error:
            put(None, error)

    def taken() -> Iterator[T]:
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
        yield taken()
    finally:
        stop.set()
        thread.join()
