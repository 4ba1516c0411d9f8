"""Items from a background thread: their order, their errors, how far the thread runs ahead, how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from fastcyclegan.data.background import in_background


def test_keeps_the_order_and_runs_ahead_only_to_its_depth() -> None:
    made: list[int] = []

    def numbers() -> Generator[int]:
        for n in range(100):
            made.append(n)
            yield n

    with in_background(numbers(), depth=3) as items:
        assert next(items) == 0
        time.sleep(0.2)
        assert 3 <= len(made) <= 5  # three are queued, one is waiting to be queued, one was consumed
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
    assert closed.wait(1)
    closed.clear()
    with in_background(failing(), 1) as items:  # the consumer stops early
        next(items)
    assert closed.wait(1)
    assert not any(thread.name == "fastcyclegan-loader" for thread in threading.enumerate())
