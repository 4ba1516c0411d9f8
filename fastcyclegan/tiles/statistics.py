"""The mean and the variance of a map, gathered from its tiles.

Chan's rule joins the moments of two parts without subtracting large numbers from each other. (Chan, Golub,
LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.)
"""

from __future__ import annotations

import torch
from torch import Tensor


class Gathered:
    """The moments of the tiles so far, in fp64. On a device without fp64, they are gathered on the host."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Add a tile of ``count`` pixels with the ``mean`` and the biased ``variance`` [C]."""
        if mean.device.type == "mps":
            mean, variance = mean.cpu(), variance.cpu()
        mean, squares = mean.double(), variance.double() * count
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + squares + difference.square() * (self._count * count / total)
        self._count = total

    def result(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the biased variance [C], on the device of ``like``, in fp32 or its fp64."""
        assert self._mean is not None
        assert self._squares is not None
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        variance = self._squares / self._count
        return self._mean.to(like.device, dtype), variance.to(like.device, dtype)
