"""Memory layouts that operators ask for: the strides of another tensor, channels_last in its canonical form,
any dense one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the strides of ``x`` (dense, same shape): itself, or a copy where they differ or
    ``t`` is not of x's dtype.
    """
    if t.stride() == x.stride() and t.dtype == x.dtype:
        return t
    return torch.empty_like(x).copy_(t)


def channels_last(t: Tensor) -> Tensor:
    """Return ``t`` in channels_last with the strides that a fresh tensor has, also where a dimension of size
    1 leaves them open.
    """
    t = t.contiguous(memory_format=torch.channels_last)
    _, C, H, W = t.shape
    canonical = (C * H * W, 1, C * W, C)
    if t.stride() == canonical:
        return t
    # A copy, not a view in other words: what an operator returns may be changed in place.
    return t.new_empty_strided(t.shape, canonical).copy_(t)


def empty_channels_last(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return memory for ``shape`` in channels_last, on the device of x and, unless one is given, in its
    dtype.
    """
    if dtype is None:
        dtype = x.dtype
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def in_dtype(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return ``t`` in ``dtype``, None where there is none."""
    if t is None:
        return None
    return t.to(dtype)


def empty_result(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what stands for an operator's result that is not there."""
    return x.new_empty(0, dtype=dtype)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` itself if its memory is dense with channels last or first, else a channels_last copy."""
    last = x.movedim(1, -1)
    if last.is_contiguous() or x.is_contiguous():
        return x
    return last.contiguous().movedim(-1, 1)
