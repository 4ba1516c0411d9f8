"""Bring weights and biases into the forms that the matrix products read, and allocate their gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ._working_copies import form_of, working_copy
from .border_launch import Pixels

# The number of channels to which images of fewer channels are padded: 16 bytes of 16-bit values.
IMAGE = 8


def stride_between(tensors: Sequence[Tensor]) -> int | None:
    """Return the number of elements from the start of one tensor to the start of the next.

    Returns None unless the tensors have the same dtype and strides, and are evenly spaced in the same memory.
    """
    first = tensors[0]
    step = first.numel()
    if len(tensors) > 1:
        step = int(tensors[1].storage_offset() - first.storage_offset())
    for i, t in enumerate(tensors):
        same = (
            t.dtype == first.dtype
            and t.stride() == first.stride()
            and t.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        )
        if not same or t.storage_offset() != first.storage_offset() + i * step:
            return None
    return step if step > 0 else None


def stacked(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stack P weights [O, I, KH, KW] into one tensor [P, O, KH, KW, I] in ``dtype``.

    Nothing is copied if the weights already have this form in memory, or if they have a working copy.
    """
    if (copy := working_copy(weights, dtype)) is not None:
        return copy
    first = weights[0].detach()
    rows = first.permute(0, 2, 3, 1)
    same_form = first.dtype == dtype and rows.is_contiguous()
    if same_form and stride_between([w.detach() for w in weights]) == first.numel():
        return rows.as_strided((len(weights), *rows.shape), (first.numel(), *rows.stride()))
    stack = torch.empty((len(weights), *rows.shape), dtype=dtype, device=first.device)
    for target, weight in zip(stack, weights, strict=True):
        target.copy_(weight.detach().permute(0, 2, 3, 1))
    return stack


def window(kernel: int) -> int:
    """Return how many neighbouring pixels a window has, for a convolution with kernel size ``kernel``.

    Each row of the matrix product covers one window. Each pixel has IMAGE channels.
    """
    return max(2, triton.next_power_of_2(kernel))


def _padded(source: Tensor, out: Tensor | None, *sizes: int) -> Tensor:
    """Return ``source`` with its last two dimensions padded with zeros to ``sizes``.

    If ``out``, the result of an earlier call, is given, it is overwritten.
    """
    if out is None:
        out = source.new_zeros((*source.shape[:-2], *sizes))
    out[..., : source.shape[-2], : source.shape[-1]].copy_(source)
    return out


def window_weight(w: Tensor, *, turned: bool = False) -> Tensor:
    """Rearrange w [P, O, KH, KW, I] to [P, O, KH, 1, window IMAGE], which multiplies windows of pixels.

    If ``turned`` is true, rearrange ``transposed(w)`` instead.
    """

    def make(w: Tensor, out: Tensor | None) -> Tensor:
        w = transposed(w) if turned else w
        return _padded(w, out, window(w.shape[3]), IMAGE)

    padded = form_of(w, f"window {turned}", make)
    return padded.flatten(3)[:, :, :, None]


def contract_weight(w: Tensor, *, turned: bool = False) -> Tensor:
    """Rearrange w [P, O, KH, KW, I] to [P, KH, I, KW_P, O_P] for ``contract``.

    Each row of taps becomes a matrix from input channels to (kw, o). If ``turned`` is true, rearrange
    ``transposed(w)`` instead.
    """

    def make(w: Tensor, out: Tensor | None) -> Tensor:
        w = transposed(w) if turned else w
        taps = triton.next_power_of_2(w.shape[3])
        channels = max(triton.next_power_of_2(w.shape[1]), 16 // taps)
        return _padded(w.permute(0, 2, 4, 3, 1), out, taps, channels)

    return form_of(w, f"contract {turned}", make)


def transposed(w: Tensor) -> Tensor:
    """Return the weight of the input gradient: w [P, O, KH, KW, I] as [P, I, KH, KW, O].

    The taps are rotated by 180 degrees.
    """
    return w.flip(2, 3).permute(0, 4, 2, 3, 1)


def stack_bias(bias: Sequence[Tensor]) -> Tensor | None:
    """Stack P biases [O] into one tensor [P, O]. Returns None if ``bias`` is empty."""
    if not bias:
        return None
    copy = working_copy(bias, bias[0].dtype)
    if copy is not None:
        return copy
    if len(bias) == 1:
        return bias[0].detach()[None]
    return torch.stack([b.detach() for b in bias])


def images_of(x: Pixels, first: int, count: int) -> Pixels:
    """Return a view of ``count`` images of x, starting with image number ``first``."""
    size = x.rows * x.step
    start = x.data.storage_offset() + first * size
    data = x.data.as_strided((count, x.rows, x.step), (size, x.step, 1), start)
    return dataclasses.replace(x, data=data, N=count)


def runs_of(needs: Sequence[bool]) -> list[tuple[int, int]]:
    """Return each run of adjacent True values in ``needs`` as (index of the first, count)."""
    runs: list[tuple[int, int]] = []
    for i, need in enumerate(needs):
        if need and i > 0 and needs[i - 1]:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif need:
            runs.append((i, 1))
    return runs


def empty_gradients(weights: Sequence[Tensor], needs: Sequence[bool]) -> Tensor:
    """Return uninitialised memory [R, O, I, KH, KW] for the gradients of the R weights that need one.

    Each gradient has the strides of the weights if these are dense.
    """
    first, count = weights[0], sum(needs)
    like = torch.empty_like(first)
    return like.new_empty_strided((count, *first.shape), (first.numel(), *like.stride()))
