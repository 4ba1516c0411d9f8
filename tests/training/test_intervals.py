"""Periodic work is due after a number of images, or by the clock, which can slow down as the run grows."""

from __future__ import annotations

import itertools
import time

import pytest

from fastcyclegan.training.intervals import Interval
from fastcyclegan.training.sample_page import expendable


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


def test_a_day_of_samples_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of the defaults at 256 pixels, 5 iterations per second, with a grid of 3.7 MB that takes 1 s.

    One grid every 30 seconds would be 2,880 grids and 10.7 GB, and as much again as events.
    """
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    interval = Interval(None, 30.0, share=0.05, growth=0.05)
    written: list[float] = []
    kept: list[int] = []
    while clock[0] < 24 * 3600:
        clock[0] += 0.2
        if interval.due:
            clock[0] += 1.0
            interval.restart(cost=1.0)
            written.append(clock[0])
            kept.append(int(clock[0] * 5))
            if len(kept) > 100:
                kept.remove(expendable(kept))
    gaps = [later - earlier for earlier, later in itertools.pairwise(written)]
    assert gaps[0] == pytest.approx(31.0, abs=0.3)
    assert max(gap for gap, start in zip(gaps, written, strict=False) if start < 500) < 31.5
    assert gaps[-1] == pytest.approx(0.05 * written[-2], rel=0.01)
    assert len(written) == 120
    assert len(kept) == 100
    assert len(kept) * 3.7e6 == pytest.approx(370e6)


def test_a_number_of_images_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    interval = Interval(10, 30.0, share=0.05, growth=0.05)
    due = []
    for _ in range(40):
        clock[0] += 1e6
        interval.count(5)
        due.append(interval.due)
        if interval.due:
            interval.restart(cost=1e5)
    assert due == [False, True] * 20
