"""When something is due: after so many images, or so much time."""

from __future__ import annotations

import time


class Interval:
    """When something is due: every ``images`` images if given, else every ``seconds``, and then never more
    than ``share`` of the time.
    """

    def __init__(self, images: int | None, seconds: float, share: float = 1.0) -> None:
        self.images, self.seconds, self.share = images, seconds, share
        self.seen, self.since, self.cost = 0, time.monotonic(), 0.0

    def count(self, images: int) -> None:
        """Count ``images`` more images."""
        self.seen += images

    @property
    def due(self) -> bool:
        """Whether it is time."""
        if self.images is not None:
            return self.seen >= self.images
        return time.monotonic() - self.since >= max(self.seconds, self.cost / self.share)

    def done(self, cost: float = 0.0) -> None:
        """It was done, and took ``cost`` seconds."""
        if self.images is not None:
            self.seen %= self.images
        else:
            self.seen = 0
        self.since, self.cost = time.monotonic(), cost
