"""Keep a bounded number of points of a curve, however many values it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 2000


class Thinned:
    """The means of groups of consecutive records: fewer than ``LIMIT`` points for any number of records.

    Each point is the mean of ``size`` records. When there are too many points, neighbours are merged and
    ``size`` doubles. Only the values called ``names`` are kept; ``count`` is the number of records.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.size, self.count = names, 1, 0
        self._points: list[NDArray[np.float64]] = []
        self._sum, self._summed = np.zeros(len(names)), 0

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record. It is ignored if it lacks one of the values or one is not a number."""
        numbers: list[float] = []
        for name in self.names:
            value = record.get(name)
            if not isinstance(value, (int, float)) or abs(value) >= 2**1000:  # a float ends soon after
                return
            numbers.append(value)
        self.count += 1
        self._sum += numbers
        self._summed += 1
        if self._summed == self.size:
            self._points.append(self._sum / self._summed)
            self._sum, self._summed = np.zeros(len(self.names)), 0
        if len(self._points) == LIMIT:
            self._points = list(np.reshape(self._points, (LIMIT // 2, 2, -1)).mean(1))
            self.size *= 2

    def records(self) -> list[dict[str, float]]:
        """Return the points in order. The last one may be the mean of fewer records than the others."""
        points = list(self._points)
        if self._summed:
            points.append(self._sum / self._summed)
        return [dict(zip(self.names, point.tolist(), strict=True)) for point in points]
