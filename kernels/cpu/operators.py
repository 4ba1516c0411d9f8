"""The operators that processors compute in C++: an instance norm, and a norm with a convolution after it.

Which kernel computes a convolution is decided when it runs, so compiled graphs are right for every size and
processor. ``autograd.py`` registers the operators' gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._calls import NormConvCall, NormConvSaved
from .._checks import check_device, check_images, check_padding, check_pixels, check_tensor, check_vectors
from .._layout import empty_channels_last, empty_result
from .._norm import Norm, empty_statistics
from . import convolution, functions

ACTS = ("none", "relu", "leaky_relu")
_CONV = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
# Not torch.library.custom_op: the first call of such an operator imports torch's compiler, 1.5 s.
Four = tuple[Tensor, Tensor, Tensor, Tensor]
LIBRARY = torch.library.Library("fastcyclegan", "FRAGMENT")


def _operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the operator ``schema``."""
    name = schema.partition("(")[0]

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,))
        LIBRARY.impl(name, body, "CPU")
        return body

    return register


def _check_input(op: str, x: Tensor, norm: Norm, border: int) -> None:
    check_tensor(op, x)
    if x.device.type != "cpu" or x.dtype not in functions.DTYPES:
        raise TypeError(f"{op}: x must be float32 or bfloat16 on the CPU, got {x.dtype} on {x.device}")
    if x.dim() < 3 or norm.act not in ACTS:
        raise ValueError(
            f"{op}: x must be [N, C, ...] and act one of {', '.join(ACTS)}, got {list(x.shape)}, {norm.act!r}"
        )
    check_vectors(op, x, norm.weight, norm.bias)
    if border:
        check_images(op, x)
        check_padding(op, x, border, 1)


def _check_norm(x: Tensor, norm: Norm, residual: Tensor | None) -> None:
    _check_input("cpp_norm", x, norm, 0)
    check_pixels(x)
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"cpp_norm: residual must be {x.dtype} {list(x.shape)}, got {residual.dtype}"
                f" {list(residual.shape)}"
            )
        check_device("cpp_norm", "residual", residual, x)


@_operator(
    "cpp_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, str act, float slope)"
    " -> (Tensor, Tensor, Tensor)"
)
def cpp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return act(IN(x)) + residual, in the layout of x, and mean and rstd [N, C] of x.

    x is dense, with its channels last or first.
    """
    norm = Norm(weight, bias, eps, act, slope)
    _check_norm(x, norm, residual)
    return functions.norm(x, norm, residual)


@torch.library.register_fake("fastcyclegan::cpp_norm", lib=LIBRARY)
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_norm(x, Norm(weight, bias, eps, act, slope), residual)
    return torch.empty_like(x), *empty_statistics(x)


@_operator(
    "cpp_norm_backward(Tensor g, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, str act,"
    " float slope) -> (Tensor, Tensor)"
)
def cpp_norm_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return dx, and the sums [2, N, C] of dz = g * act'(z) and of dz * x-hat over each image."""
    return functions.norm_backward(g, x, Norm(weight, bias, act=act, slope=slope), mean, rstd)


@torch.library.register_fake("fastcyclegan::cpp_norm_backward", lib=LIBRARY)
def _(g: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


def _check_norm_conv(call: NormConvCall) -> None:
    op, x, weight = "cpp_norm_conv", call.x, call.weight
    check_images(op, x)
    _check_input(op, x, call.norm, call.border)
    if call.normed:
        check_pixels(x)
    for name, t in (("weight", weight), ("bias", call.bias)):
        if t is not None:
            if t.dtype not in (x.dtype, torch.float32):
                raise TypeError(f"{op}: {name} must be {x.dtype} or torch.float32, got {t.dtype}")
            check_device(op, name, t, x)
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"{op}: weight must be a kernel with four dimensions, got {list(weight.shape)}")
    channels = weight.shape[0] if call.conv.transposed else weight.shape[1] * call.conv.groups
    if channels != x.shape[1]:
        raise ValueError(f"{op}: weight must be for {x.shape[1]} channels, got {list(weight.shape)}")
    outputs = call.conv.out_channels(weight)
    if call.bias is not None and call.bias.shape != (outputs,):
        raise ValueError(f"{op}: bias must be [{outputs}], got {list(call.bias.shape)}")
    if not call.conv.transposed:
        _check_size(call)


def _check_size(call: NormConvCall) -> None:
    """Raise ValueError unless the padded image is at least as large as the kernel."""
    conv = call.conv
    for i, (side, k) in enumerate(zip(call.x.shape[2:], call.weight.shape[2:], strict=True)):
        if side + 2 * (call.border + conv.padding[i]) < conv.dilation[i] * (k - 1) + 1:
            raise ValueError(
                f"cpp_norm_conv: the padded x must be at least as large as the kernel, got x of shape"
                f" {tuple(call.x.shape)} and weight {list(call.weight.shape)}"
            )


def _split(arguments: tuple[Any, ...]) -> tuple[NormConvCall, bool, convolution.By]:
    """Return the call, and whether its result is fp32, and by what it is computed."""
    *flat, float_out, by = arguments
    return NormConvCall.of(*flat), float_out, by


@_operator(
    "cpp_norm_conv(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, bool norm,"
    f" float eps, str act, float slope, int border, bool recompute, {_CONV}, bool float_out, str by)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def cpp_norm_conv(*arguments: Any) -> Four:
    """Convolve act(IN(x)), or x if ``norm`` is false, after padding it with ``border`` reflected pixels.

    The arguments are those of ``norm_conv_fwd``, then ``float_out`` and ``by``; for these, and for the
    results, see ``convolution.norm_convolve``. If ``recompute`` is true, y is empty.
    """
    call, float_out, by = _split(arguments)
    _check_norm_conv(call)
    norm = call.norm if call.normed else None
    results = convolution.norm_convolve(
        call.x, norm, call.border, call.weight, call.bias, call.conv, by=by, float_out=float_out
    )
    y = empty_result(call.x) if call.recompute else results.y
    return results.out, results.mean, results.rstd, y


@torch.library.register_fake("fastcyclegan::cpp_norm_conv", lib=LIBRARY)
def _(*arguments: Any) -> Four:
    call, float_out, by = _split(arguments)
    _check_norm_conv(call)
    padded = functions.empty_bordered(call.x, call.border)
    out = torch.ops.aten.convolution(padded, call.weight.to(padded.dtype), None, *call.conv.flat())
    y = empty_result(padded)
    if call.normed and not call.recompute:
        kind = convolution.chosen("conv", call.x, call.weight, call.conv, call.border, by)
        y = empty_channels_last(call.x, call.x.shape) if kind == "winograd" else padded
    out = empty_channels_last(out, out.shape, torch.float32 if float_out else padded.dtype)
    return out, *empty_statistics(padded, call.normed), y


@_operator(
    "cpp_norm_conv_backward(Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor mean,"
    f" Tensor rstd, Tensor weight, Tensor y, str act, float slope, int border, bool[] needs, {_CONV}, str by)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def cpp_norm_conv_backward(g: Tensor, *arguments: Any) -> Four:
    """Return the gradients dx, dweight and dbias, and the norm's total; see ``convolution.gradients``."""
    *flat, by = arguments
    return convolution.gradients(g, NormConvSaved.of(*flat), by=by)


@_operator(
    "cpp_norm_conv_backward_(Tensor(a!) into, Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias,"
    " Tensor mean, Tensor rstd, Tensor weight, Tensor y, str act, float slope, int border, bool[] needs,"
    f" {_CONV}, str by) -> (Tensor, Tensor, Tensor, Tensor)"
)
def cpp_norm_conv_backward_(into: Tensor, g: Tensor, *arguments: Any) -> Four:
    """Compute ``cpp_norm_conv_backward``, but add dweight to ``into`` in place and return an empty one."""
    *flat, by = arguments
    return convolution.gradients(g, NormConvSaved.of(*flat), by=by, into=into)


@torch.library.register_fake("fastcyclegan::cpp_norm_conv_backward", lib=LIBRARY)
def _(g: Tensor, *arguments: Any) -> Four:
    *flat, _ = arguments
    saved = NormConvSaved.of(*flat)
    x, weight, needs = saved.x, saved.weight, saved.needs
    dx = empty_channels_last(x, x.shape) if saved.normed or needs[0] else empty_result(x)
    dweight = torch.empty_like(weight) if needs[1] else empty_result(x)
    dbias = weight.new_empty(saved.conv.out_channels(weight)) if needs[2] else empty_result(x)
    total = (2, *x.shape[:2]) if saved.normed else (0,)
    return dx, dweight, dbias, x.new_empty(total, dtype=torch.float32)
