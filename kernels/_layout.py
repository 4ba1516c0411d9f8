"""Bring tensors into a memory layout: that of another tensor, canonical channels_last, or any dense one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def like(t: Tensor, x: Tensor) -> Tensor:
    """Return ``t`` with the strides and dtype of ``x``, which is dense and has the same shape.

    Returns ``t`` itself if both already match, otherwise a copy.
    """
    if t.stride() == x.stride() and t.dtype == x.dtype:
        return t
    return torch.empty_like(x).copy_(t)


def channels_last(t: Tensor) -> Tensor:
    """Return ``t`` in channels_last, with exactly the strides that a newly allocated tensor would have.

    For dimensions of size 1, PyTorch would accept any stride.
    """
    t = t.contiguous(memory_format=torch.channels_last)
    if is_channels_last(t):
        return t
    # A copy, not a view with other strides: an operator's result may be modified in place.
    return t.new_empty_strided(t.shape, _strides_of(t)).copy_(t)


def is_channels_last(t: Tensor) -> bool:
    """Return whether ``t`` is in channels_last, with exactly the strides of a newly allocated tensor."""
    return t.stride() == _strides_of(t)


def _strides_of(t: Tensor) -> tuple[int, int, int, int]:
    _, C, H, W = t.shape
    return C * H * W, 1, C * W, C


def empty_channels_last(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised channels_last tensor of ``shape`` on the device of x.

    ``dtype`` defaults to that of x.
    """
    if dtype is None:
        dtype = x.dtype
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def in_dtype(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return ``t`` in ``dtype``, or None if ``t`` is None."""
    if t is None:
        return None
    return t.to(dtype)


def empty_result(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor as the placeholder for a result that an operator does not produce."""
    return x.new_empty(0, dtype=dtype)


def dense(x: Tensor) -> Tensor:
    """Return ``x`` itself if it is dense, with channels last or first; otherwise a channels_last copy."""
    last = x.movedim(1, -1)
    if last.is_contiguous() or x.is_contiguous():
        return x
    return last.contiguous().movedim(-1, 1)
