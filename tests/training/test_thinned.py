"""The points of a curve are bounded in number, and are means of all its values."""

from __future__ import annotations

import pytest

from fastcyclegan.training.thinned import LIMIT, Thinned


def test_points_are_means_of_groups_and_few() -> None:
    """The values of a straight line are their own means, also after merging three times."""
    thinned = Thinned(("iteration", "loss"))
    for n in range(8 * LIMIT + 3):
        thinned.add({"iteration": n, "loss": 2.0 * n, "other": "x"})
    points = thinned.records()
    assert (thinned.count, thinned.size) == (8 * LIMIT + 3, 16)
    assert len(points) == LIMIT // 2 + 1
    assert points[0] == {"iteration": 7.5, "loss": 15.0}
    assert points[-2]["iteration"] == 8 * LIMIT - 16 + 7.5
    assert points[-1] == {"iteration": 8 * LIMIT + 1, "loss": 2 * (8 * LIMIT + 1)}  # the mean of only three
    total = sum(point["loss"] * 16 for point in points[:-1]) + points[-1]["loss"] * 3
    assert total == pytest.approx(sum(2.0 * n for n in range(8 * LIMIT + 3)))


def test_few_values_stay_as_they_are() -> None:
    thinned = Thinned(("iteration", "loss"))
    assert thinned.records() == []
    for n in (1, 2, 5):
        thinned.add({"iteration": n, "loss": float(n)})
    thinned.add({"iteration": 6})
    thinned.add({"iteration": 7, "loss": "high"})
    for odd in (None, [1.0], 10**400, {}):
        thinned.add({"iteration": 7, "loss": odd})
    assert thinned.records() == [{"iteration": n, "loss": n} for n in (1, 2, 5)]
    assert thinned.count == 3
