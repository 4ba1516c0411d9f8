"""Parameters of an instance norm, as operators, their twins and launchers pass them on.

Imports only torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """The instance norm act(IN(x) * ``weight`` + ``bias``).

    weight, bias: [C] or None. act: "none", "relu" or "leaky_relu" with negative slope ``slope``. A backward
    pass has the statistics and does not read ``eps``.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    act: str = "none"
    slope: float = 0.2


def empty_statistics(x: Tensor, normed: bool = True) -> tuple[Tensor, Tensor]:
    """Return uninitialised memory for mean and 1 / sigma [N, C] of x in fp32, both empty without a norm."""
    shape = x.shape[:2] if normed else (0,)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
