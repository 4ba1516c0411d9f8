"""Memory layouts that operators ask for: the strides of another tensor, channels_last in its canonical form,
any dense one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the strides of ``x`` (dense, same shape): itself, or a copy where they differ or
    ``t`` is not of x's dtype.
    """
    return t if t.stride() == x.stride() and t.dtype == x.dtype else torch.empty_like(x).copy_(t)


def channels_last(t: Tensor) -> Tensor:
    """Return ``t`` in channels_last with the strides that a fresh tensor has, also where a dimension of size
    1 leaves them open.
    """
    t = t.contiguous(memory_format=torch.channels_last)
    _, C, H, W = t.shape
    canonical = (C * H * W, 1, C * W, C)
    # A copy, not a view in other words: what an operator returns may be changed in place.
    return t if t.stride() == canonical else t.new_empty_strided(t.shape, canonical).copy_(t)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` itself if its memory is dense with channels last or first, else a channels_last copy."""
    last = x.movedim(1, -1)
    return x if last.is_contiguous() or x.is_contiguous() else last.contiguous().movedim(-1, 1)
