"""Judge by the losses whether a saved state is good: a run can diverge long before a loss is infinite."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

LIMIT = 10.0
"""Losses are normal as long as their sum is at most this many times its average so far."""
_SMALLEST = 1e-8


class LossWatch:
    """Compares the losses since the last save with all earlier ones.

    The average is a geometric one, so that a few large values hardly change it, and it covers all iterations
    of the run. ``log_sum`` and ``count`` continue the average of a run that is resumed.
    """

    def __init__(self, log_sum: float = 0.0, count: int = 0) -> None:
        self.log_sum, self.count = log_sum, count
        self.window: list[float] = []
        self._before = (log_sum, count)

    def add(self, rows: Iterable[Tensor]) -> None:
        """Add the losses of some iterations, each of shape [losses], except those that are not finite."""
        for row in rows:
            total = row.abs().sum().item()
            if not math.isfinite(total):
                continue
            self.window.append(math.log(max(total, _SMALLEST)))
            self.log_sum += self.window[-1]
            self.count += 1

    @property
    def is_normal(self) -> bool:
        """Whether the losses since the last save are normal. False if there are none."""
        if not self.window:
            return False
        log_sum, count = self._before
        if not count:
            return True
        return sum(self.window) / len(self.window) <= log_sum / count + math.log(LIMIT)

    def restart(self) -> None:
        """Begin a new window, because the state was saved."""
        self.window, self._before = [], (self.log_sum, self.count)
