"""Parameters of an instance norm, as passed between the operators, their PyTorch twins and the launchers.

Imports only torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Norm:
    """The instance norm act(IN(x) * ``weight`` + ``bias``).

    weight, bias: [C] or None. act: "none", "relu" or "leaky_relu" with negative slope ``slope``. Backward
    passes do not read ``eps``, because they receive the statistics.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    act: str = "none"
    slope: float = 0.2


def empty_statistics(x: Tensor, normed: bool = True) -> tuple[Tensor, Tensor]:
    """Return uninitialised fp32 tensors for the mean and 1 / sigma [N, C] of x.

    If ``normed`` is false, both are empty.
    """
    shape = x.shape[:2] if normed else (0,)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


def affine_gradients(total: Tensor, norm: Norm, needs: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the norm's weight and bias from ``total`` [2, N, C].

    ``needs`` tells whether the weight and the bias need a gradient. If one does not, None is returned for it.
    """
    dweight = dbias = None
    if norm.weight is not None and needs[0]:
        dweight = total[1].sum(0).to(norm.weight.dtype)
    if norm.bias is not None and needs[1]:
        dbias = total[0].sum(0).to(norm.bias.dtype)
    return dweight, dbias
