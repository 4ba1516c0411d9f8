"""Norms and convolutions on a processor, each by the C++ kernels or by PyTorch, whichever is faster.

PyTorch's convolutions are those of oneDNN, which uses the matrix units (AMX) of a processor that has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from .._convolution import AtenConvolution
from .._layout import channels_last, in_dtype
from .._norm import Norm
from . import choice, functions
from .forms import form_of, has_forms
from .library import processor

By = Literal["auto", "cpp", "torch"]
# The number of channels up to which an image counts as having few.
FEW = 4
# oneDNN lays a weight out on every call. With AMX, that takes a noticeable part of the time from this
# size on, so the weight is kept in oneDNN's layout.
_WORTH_PACKING = 2**16


# What the current ``recorded`` block receives: the address of each weight, and the kernel.
_record: ContextVar[list[tuple[int, str]] | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[int, str]]]:
    """Record what computes each convolution inside the block: the address of its weight, and the kernel."""
    calls: list[tuple[int, str]] = []
    token = _record.set(calls)
    try:
        yield calls
    finally:
        _record.reset(token)


def kind_of(conv: AtenConvolution, weight: Tensor, border: int) -> str | None:
    """Return which C++ kernel computes ``conv`` of an image with a reflected ``border``, or None."""
    if conv.transposed or conv.groups != 1 or set(conv.dilation) != {1}:
        return None
    if len(set(conv.stride)) != 1 or len(set(conv.padding)) != 1 or weight.shape[2] != weight.shape[3]:
        return None
    if border and conv.padding[0]:
        return None
    O, C, k, _ = weight.shape
    if C <= FEW:
        return "wide"
    if O <= FEW:
        return "few"
    if k == 3 and conv.stride[0] == 1:
        return "winograd"
    return None


def chosen(x: Tensor, weight: Tensor, conv: AtenConvolution, border: int, by: By) -> str | None:
    """Return which C++ kernel computes ``conv``, or None if PyTorch does."""
    kind = None if by == "torch" else kind_of(conv, weight, border)
    if kind is None or by == "cpp":
        return kind
    O, C, k, _ = weight.shape
    pixels = x.shape[2] * x.shape[3]
    return kind if choice.is_faster("conv", x.dtype, k, conv.stride[0], C, O, pixels) else None


def norm_convolve(
    x: Tensor,
    norm: Norm | None,
    border: int,
    weight: Tensor,
    bias: Tensor | None,
    conv: AtenConvolution,
    *,
    by: By = "auto",
    float_out: bool = False,
) -> Tensor:
    """Convolve act(IN(x)), or x if ``norm`` is None, after padding it with ``border`` reflected pixels.

    x is [N, C, H, W] in fp32 or bf16. weight and bias have its dtype or are fp32 (then rounded on use).
    ``by`` selects the C++ kernels, PyTorch, or the faster one. The result is in channels_last, and in the
    dtype of x or, with ``float_out``, in fp32.
    """
    kind = chosen(x, weight, conv, border, by)
    calls = _record.get()
    if calls is not None:
        calls.append((weight.data_ptr(), "PyTorch" if kind is None else kind))
    if norm is not None:
        # Winograd's kernel reads reflected pixels where they are, so the norm need not write them.
        written = 0 if kind == "winograd" else border
        x, border = functions.norm(x, norm, border=written), border - written
    if kind is not None:
        options = {"stride": conv.stride[0], "padding": border if border else conv.padding[0]}
        return functions.convolution(
            kind, x, weight, bias, **options, reflect=border > 0, float_out=float_out
        )
    if border:
        x = functions.pad(x, border)
    y = _by_pytorch(channels_last(x), weight, in_dtype(bias, x.dtype), conv)
    return y.float() if float_out else y


def _by_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None, conv: AtenConvolution) -> Tensor:
    """Convolve x by PyTorch. If forms are kept, the weight is kept as oneDNN reads it."""
    if x.dtype == torch.bfloat16 and processor() == "avx2" and x.numel():
        return _without_bf16_instructions(x, weight, bias, conv)
    if not has_forms() or x.dtype != torch.bfloat16 or not x.numel():
        return channels_last(torch.ops.aten.convolution(x, weight.to(x.dtype), bias, *conv.flat()))
    is_packed = not conv.transposed and conv.groups == 1 and weight.numel() >= _WORTH_PACKING
    if not is_packed or processor() != "amx":
        rounded = form_of(weight, x.dtype, lambda w: channels_last(w.to(x.dtype)))
        return channels_last(torch.ops.aten.convolution(x, rounded, bias, *conv.flat()))
    sizes = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def pack(w: Tensor) -> Tensor:
        rounded = channels_last(w.to(x.dtype))
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(rounded, *sizes, list(x.shape))
        return packed

    packed = form_of(weight, ("packed", x.dtype, tuple(x.shape), str(sizes)), pack)
    return channels_last(torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *sizes, "none", [], ""))


def _without_bf16_instructions(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: AtenConvolution
) -> Tensor:
    """Convolve a bf16 image in fp32, and round the result: oneDNN would take ten times as long in bf16."""
    rounded = form_of(weight, ("fp32", x.dtype), lambda w: channels_last(w.to(x.dtype).float()))
    offset = in_dtype(bias, torch.float32)
    y = torch.ops.aten.convolution(x.float(), rounded, offset, *conv.flat())
    return channels_last(y.to(x.dtype))
