"""Norms and convolutions on a processor, each by the C++ kernels or by PyTorch, whichever is faster.

PyTorch's convolutions are those of oneDNN, which uses the matrix units (AMX) of a processor that has them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._calls import NormConvSaved
from .._convolution import AtenConvolution
from .._layout import channels_last, empty_result, in_dtype, is_channels_last, like
from .._norm import Norm, empty_statistics
from . import choice, functions, small_maps
from .forms import form_of, has_forms
from .processors import processor

By = Literal["auto", "cpp", "torch"]
Op = Literal["conv", "dgrad", "wgrad"]
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


def chosen(
    op: Op, x: Tensor, weight: Tensor, conv: AtenConvolution, border: int, by: By = "auto"
) -> str | None:
    """Return the kind of the C++ kernel that computes ``conv`` or a gradient of it, or None if PyTorch does.

    ``op`` is "conv", "dgrad" (the gradient of the image x) or "wgrad" (that of the weight).
    """
    kind = None if by == "torch" else kind_of(conv, weight, border)
    if kind is None or not _has_gradient(op, kind, conv, weight.shape[2]):
        return None
    if by == "cpp":
        return kind
    O, C, k, _ = weight.shape
    measured = "once" if op == "conv" and not has_forms() else op
    pixels = x.shape[2] * x.shape[3]
    return kind if choice.is_faster(measured, x.dtype, k, conv.stride[0], C, O, pixels) else None


def _has_gradient(op: Op, kind: str, conv: AtenConvolution, k: int) -> bool:
    """Return whether there is a kernel for ``op`` of a convolution that the kernel ``kind`` computes."""
    if op == "conv":
        return True
    if op == "dgrad":
        return conv.stride[0] == 1 and conv.padding[0] < k
    return kind != "few" or conv.stride[0] == 1


@dataclass(frozen=True)
class Results:
    """A convolution's output, and what its gradient needs: mean and rstd [N, C] of x, and the norm's output.

    Without a norm, mean, rstd and y, the norm's output, are empty. y has the reflected border, unless the
    kernel reads the border where it is.
    """

    out: Tensor
    mean: Tensor
    rstd: Tensor
    y: Tensor


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
) -> Results:
    """Convolve act(IN(x)), or x if ``norm`` is None, after padding it with ``border`` reflected pixels.

    x is [N, C, H, W] in any layout, in fp32 or bf16. weight and bias have its dtype or are fp32 (then rounded
    on use). ``by`` selects the C++ kernels, PyTorch, or the faster one. The output is in channels_last, and
    in the dtype of x or, with ``float_out``, in fp32.
    """
    x = channels_last(x)
    kind = chosen("conv", x, weight, conv, border, by)
    calls = _record.get()
    if calls is not None:
        calls.append((weight.data_ptr(), "PyTorch" if kind is None else kind))
    y = empty_result(x)
    mean, rstd = empty_statistics(x, False)
    if norm is not None:
        # Winograd's kernel reads reflected pixels where they are, so the norm need not write them.
        written = 0 if kind == "winograd" else border
        y, mean, rstd = functions.norm(x, norm, border=written)
        x, border = y, border - written
    if kind is not None:
        options = {"stride": conv.stride[0], "padding": border if border else conv.padding[0]}
        out = functions.convolution(kind, x, weight, bias, **options, reflect=border > 0, float_out=float_out)
        return Results(out, mean, rstd, y)
    if border:
        x = functions.pad(x, border)
    out = _by_pytorch(x, weight, in_dtype(bias, x.dtype), conv)
    return Results(out.float() if float_out else out, mean, rstd, y)


def _by_pytorch(x: Tensor, weight: Tensor, bias: Tensor | None, conv: AtenConvolution) -> Tensor:
    """Convolve x by PyTorch. If forms are kept, the weight is kept as oneDNN reads it."""
    size = conv.out_shape(x, weight)
    if small_maps.serves(x.shape if conv.transposed else size, weight, conv):
        return _as_product(x, weight, bias, conv, size)
    if x.dtype == torch.bfloat16 and processor() == "avx2" and x.numel():
        return _without_bf16_instructions(x, weight, bias, conv)
    if not has_forms() or x.dtype != torch.bfloat16 or not x.numel():
        if _prefers_planes(weight, x):
            x = x.contiguous()
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


def _as_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: AtenConvolution, size: Sequence[int]
) -> Tensor:
    """Convolve x as a product of matrices. ``size`` is the shape of the result."""
    if conv.transposed:
        y = small_maps.scatter(x, size[2:], weight, conv)
    else:
        y = small_maps.gather(x, weight, conv)
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _prefers_planes(weight: Tensor, x: Tensor) -> bool:
    """Return whether PyTorch convolves x with ``weight`` faster if x is contiguous.

    oneDNN lays a contiguous weight out anew for an image in channels_last, and so it does its gradient. If
    the weight is the larger of the two, as in the deep layers of a U-Net, it is better to lay out the image.
    """
    return weight.is_contiguous() and not is_channels_last(weight) and weight.numel() > x.numel()


def _without_bf16_instructions(
    x: Tensor, weight: Tensor, bias: Tensor | None, conv: AtenConvolution
) -> Tensor:
    """Convolve a bf16 image in fp32, and round the result: oneDNN would take ten times as long in bf16."""
    rounded = _rounded_in_fp32(weight, x.dtype)
    offset = in_dtype(bias, torch.float32)
    y = torch.ops.aten.convolution(x.float(), rounded, offset, *conv.flat())
    return channels_last(y.to(x.dtype))


def _rounded_in_fp32(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``weight``, rounded to ``dtype``, in fp32."""
    form: Tensor = form_of(weight, ("fp32", dtype), lambda w: channels_last(w.to(dtype).float()))
    return form


# --- Gradients ----------------------------------------------------------------------------------------------


def gradients(
    g: Tensor, saved: NormConvSaved, *, by: By = "auto", into: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients dx, dweight and dbias of ``norm_convolve``, and the norm's total [2, N, C].

    Those that ``saved.needs`` does not ask for are empty, but with a norm, dx and total are always computed.
    dx is in channels_last, and dweight in the layout and dtype of the weight. If ``into`` is given, it is the
    weight's gradient so far, to which dweight is added; the dweight that is returned is then empty.
    """
    x, weight, needs = channels_last(saved.x), saved.weight, saved.needs
    g = channels_last(g.to(x.dtype))
    dx, dweight, dbias = empty_result(x), empty_result(x), empty_result(x)
    total = empty_result(x, torch.float32)
    if needs[1]:
        dweight = _weight_gradient(g, saved, by, into)
    if needs[2]:
        dbias = functions.sum_pixels(g).to(weight.dtype)
    if not saved.normed and not needs[0]:
        return dx, dweight, dbias, total
    dy = _input_gradient(g, saved, by)
    if not saved.normed:
        return functions.fold(dy, saved.border) if saved.border else dy, dweight, dbias, total
    functions.fold_(dy, saved.border)
    dx, total = functions.norm_backward(dy, x, saved.norm, saved.mean, saved.rstd, saved.border)
    return dx, dweight, dbias, total


def _input_gradient(g: Tensor, saved: NormConvSaved, by: By) -> Tensor:
    """Return the gradient of the convolution's input, with its reflected border."""
    x, weight, conv = saved.x, saved.weight, saved.conv
    kind = chosen("dgrad", x, weight, conv, saved.border, by)
    H, W = x.shape[2:]
    size = (H + 2 * saved.border, W + 2 * saved.border)
    if kind is not None:
        return functions.input_gradient(kind, g, weight, size, padding=conv.padding[0])
    # Only the shape of the input is read.
    source = functions.empty_bordered(x, saved.border)
    return channels_last(_gradient_by_pytorch(0, g, source, weight, conv))


def _weight_gradient(g: Tensor, saved: NormConvSaved, by: By, into: Tensor | None) -> Tensor:
    """Return the gradient of the weight, or add it to ``into`` and return an empty tensor."""
    x, weight, conv = saved.x, saved.weight, saved.conv
    kind = chosen("wgrad", x, weight, conv, saved.border, by)
    source = _input_of(saved)
    # What the forward has not written of the border.
    border = saved.border - (source.shape[2] - x.shape[2]) // 2
    if kind is None:
        if border:
            source = functions.pad(source, border)
        small, large = (source, g) if conv.transposed else (g, source)
        if into is not None and small_maps.serves(small.shape, weight, conv):
            small_maps.add_weight_gradient(into, small, large, weight, conv)
            return empty_result(x)
        dweight = _gradient_by_pytorch(1, g, source, weight, conv)
    else:
        target = None
        if into is not None and into.dtype == torch.float32 and is_channels_last(into):
            target = into
        options = {"stride": conv.stride[0], "padding": border if border else conv.padding[0]}
        dweight = functions.weight_gradient(
            kind, g, source, weight.shape[2], **options, reflect=border > 0, into=target
        )
        if target is not None:
            return empty_result(x)
    if into is None:
        return like(dweight, weight)
    into.add_(dweight)
    return empty_result(x)


def _input_of(saved: NormConvSaved) -> Tensor:
    """Return the convolution's input, with or without its border: the norm's output, kept or made again."""
    if not saved.normed:
        return saved.x
    if saved.y.dim() > 1:
        return saved.y
    return functions.norm_again(channels_last(saved.x), saved.norm, saved.mean, saved.rstd)


def _gradient_by_pytorch(which: int, g: Tensor, x: Tensor, weight: Tensor, conv: AtenConvolution) -> Tensor:
    """Return the gradient of x (0) or of the weight (1) by PyTorch, in the dtype of x or wider."""
    dtype = x.dtype
    small, large = (x, g) if conv.transposed else (g, x)
    if small_maps.serves(small.shape, weight, conv):
        if which == 1:
            return small_maps.weight_gradient(small, large, weight, conv)
        if conv.transposed:
            return small_maps.gather(g, weight, conv)
        return small_maps.scatter(g, x.shape[2:], weight, conv)
    if dtype == torch.bfloat16 and processor() == "avx2":
        g, x, narrow = g.float(), x.float(), _rounded_in_fp32(weight, dtype)
    elif _prefers_planes(weight, x):
        g, x, narrow = g.contiguous(), x.contiguous(), weight.to(dtype)
    elif weight.dtype == dtype:
        narrow = weight
    else:
        narrow = form_of(weight, dtype, lambda w: channels_last(w.to(dtype)))
    mask = [which == 0, which == 1, False]
    gradients = torch.ops.aten.convolution_backward(g, x, narrow, None, *conv.flat(), mask)
    result: Tensor = gradients[which]
    return result.to(dtype) if which == 0 else result
