"""Decide when periodic work is due: after a number of images or an amount of time."""

from __future__ import annotations

import time


class Interval:
    """Decides when periodic work is due.

    If ``images`` is given, the work is due every ``images`` images. Otherwise it is due every ``seconds``
    seconds, but less often if the work would take more than the fraction ``share`` of the time. With
    ``growth``, the intervals grow: each is at least this fraction of the time from the creation of this
    object to the start of the interval.
    """

    def __init__(self, images: int | None, seconds: float, share: float = 1.0, growth: float = 0.0) -> None:
        self.images, self.seconds, self.share, self.growth = images, seconds, share, growth
        self.seen, self.cost = 0, 0.0
        self.created = self.since = time.monotonic()

    def count(self, images: int) -> None:
        """Count ``images`` more images."""
        self.seen += images

    @property
    def due(self) -> bool:
        """Whether the work is due."""
        if self.images is not None:
            return self.seen >= self.images
        grown = self.growth * (self.since - self.created)
        return time.monotonic() - self.since >= max(self.seconds, self.cost / self.share, grown)

    def restart(self, cost: float = 0.0) -> None:
        """Start the next interval, after work that took ``cost`` seconds."""
        if self.images is not None:
            self.seen %= self.images
        else:
            self.seen = 0
        self.since, self.cost = time.monotonic(), cost
