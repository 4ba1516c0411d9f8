"""Work in the background: in order, ahead but no further than asked, with its errors, and closed when it is
left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from fastcyclegan.data.background import in_background


def test_background_keeps_order_runs_ahead_and_no_further() -> None:
    made: list[int] = []

    def numbers() -> Generator[int]:
        for n in range(100):
            made.append(n)
            yield n

    with in_background(numbers(), depth=3) as items:
        assert next(items) == 0
        time.sleep(0.2)
        assert 3 <= len(made) <= 5  # three wait, one is offered, one was taken
        assert list(items) == list(range(1, 100))


def test_background_raises_what_its_items_raise_and_closes_them() -> None:
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
    with in_background(failing(), 1) as items:  # left early
        next(items)
    assert closed.wait(1)
    assert not any(thread.name == "fastcyclegan-loader" for thread in threading.enumerate())
