"""The instance norm as operators, their twins and the launchers hand it on. Imports torch alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """act(IN(x) * ``weight`` + ``bias``).

    weight, bias: [C] or None. act: "none", "relu" or "leaky_relu" with negative ``slope``. A backward pass
    has the statistics and reads no ``eps``.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    act: str = "none"
    slope: float = 0.2


def empty_statistics(x: Tensor, normed: bool = True) -> tuple[Tensor, Tensor]:
    """Return memory for mean and 1 / sigma [N, C] of x in fp32; without a norm both are empty."""
    shape = x.shape[:2] if normed else (0,)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
