"""Periodic work is due after a number of images, or by the clock within a share of the time."""

from __future__ import annotations

import time

import pytest

from fastcyclegan.training.intervals import Interval


def test_interval_follows_the_clock_or_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    by_count, by_clock = Interval(10, 5.0), Interval(None, 5.0, share=0.1)
    due = []
    for _ in range(3):
        by_count.count(4)
        due.append(by_count.due)
    assert due == [False, False, True]
    by_count.restart()
    assert by_count.seen == 2  # the surplus counts towards the next interval
    clock[0] = 5.0
    assert by_clock.due
    by_clock.restart(cost=2.0)
    clock[0] = 24.9
    assert not by_clock.due  # the work took 2 s, which is a tenth of 20 s
    clock[0] = 25.1
    assert by_clock.due
