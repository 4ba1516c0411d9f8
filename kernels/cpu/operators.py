"""The operators that processors compute in C++: an instance norm, and a norm with a convolution after it.

They have no gradient: ``dispatch.py`` selects PyTorch's operators where one is asked for. Which kernel
computes a convolution is decided when it runs, so compiled graphs are right for every size and processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._calls import NormConvCall
from .._checks import check_device, check_images, check_padding, check_pixels, check_tensor, check_vectors
from .._convolution import AtenConvolution, Convolution
from .._layout import channels_last, dense, empty_channels_last
from .._norm import Norm
from .._weight_gradients import each_weight
from . import convolution, functions

ACTS = ("none", "relu", "leaky_relu")
_CONV = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
_TAGS = (torch.Tag.needs_exact_strides,)


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


@torch.library.custom_op(
    "fastcyclegan::cpp_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, str act, float slope)"
    " -> Tensor",
    tags=_TAGS,
)
def cpp_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    """Return act(IN(x)) + residual, in the layout of x, which is dense with its channels last or first."""
    norm = Norm(weight, bias, eps, act, slope)
    _check_norm(x, norm, residual)
    return functions.norm(x, norm, residual)


@cpp_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> Tensor:
    _check_norm(x, Norm(weight, bias, eps, act, slope), residual)
    return torch.empty_like(x)


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
    *flat, by = arguments
    float_out, flat[10] = flat[10], False
    return NormConvCall.of(*flat), float_out, by


@torch.library.custom_op(
    "fastcyclegan::cpp_norm_conv",
    mutates_args=(),
    schema="(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, bool norm,"
    f" float eps, str act, float slope, int border, bool float_out, {_CONV}, str by) -> Tensor",
    tags=_TAGS,
)
def cpp_norm_conv(*arguments: Any) -> Tensor:
    """Convolve act(IN(x)), or x if ``norm`` is false, after padding it with ``border`` reflected pixels.

    The arguments are those of ``norm_conv``, except for ``float_out`` and ``by``; for these and for the
    result, see ``convolution.norm_convolve``.
    """
    call, float_out, by = _split(arguments)
    _check_norm_conv(call)
    norm = call.norm if call.normed else None
    options: dict[str, Any] = {"by": by, "float_out": float_out}
    return convolution.norm_convolve(call.x, norm, call.border, call.weight, call.bias, call.conv, **options)


@cpp_norm_conv.register_fake
def _(*arguments: Any) -> Tensor:
    call, float_out, _ = _split(arguments)
    _check_norm_conv(call)
    x = functions.empty_bordered(call.x, call.border)
    out = torch.ops.aten.convolution(x, call.weight.to(x.dtype), None, *call.conv.flat())
    return empty_channels_last(out, out.shape, torch.float32 if float_out else x.dtype)


# --- What the public functions and the networks call --------------------------------------------------------


def norm(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
    """Return act(IN(x)) + residual in the layout of x, by the C++ kernel. x is copied if it is not dense."""
    tensors = (dense(x), norm.weight, norm.bias, residual)
    return torch.ops.fastcyclegan.cpp_norm(*tensors, norm.eps, norm.act, norm.slope)


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: AtenConvolution,
    *,
    norm: Norm | None = None,
    border: int = 0,
    float_out: bool = False,
    required: bool = False,
) -> Tensor:
    """Convolve act(IN(x)), or x if ``norm`` is None, after padding it with ``border`` reflected pixels.

    x: [N, C, H, W] in any layout, fp32 or bf16. weight and bias: in the dtype of x, or fp32 (then rounded on
    use). If ``required`` is true, the C++ kernels compute every convolution that they support; otherwise only
    those for which they were measured to be faster than PyTorch. The result is in channels_last, and in the
    dtype of x or, with ``float_out``, in fp32.
    """
    given = norm if norm is not None else Norm()
    tensors = (channels_last(x), given.weight, given.bias, weight, bias)
    options = (norm is not None, given.eps, given.act, given.slope, border, float_out)
    by = "cpp" if required else "auto"
    return torch.ops.fastcyclegan.cpp_norm_conv(*tensors, *options, *conv.flat(), by)


def convolve_each(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    conv: Convolution,
    *,
    norm: Norm | None = None,
    border: int = 0,
    required: bool = False,
) -> Tensor:
    """Compute ``norm_conv`` with P weights, each applied to its own N / P images of x."""
    options: dict[str, Any] = {"norm": norm, "border": border, "required": required}
    each = each_weight(x, weights, biases if biases else [None] * len(weights))
    parts = [norm_conv(part, weight, bias, conv.aten, **options) for part, weight, bias in each]
    return parts[0] if len(parts) == 1 else channels_last(torch.cat(parts)[: x.shape[0]])


def residual_block(
    x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], eps: float, *, required: bool = False
) -> Tensor:
    """Compute ``residual_block`` of x [N, C, H, W] in channels_last."""
    options: dict[str, Any] = {"border": 1, "required": required}
    c1 = convolve_each(x, first, [], Convolution(), **options)
    c2 = convolve_each(c1, second, [], Convolution(), norm=Norm(eps=eps, act="relu", slope=0.0), **options)
    return norm(c2, Norm(eps=eps, act="none"), x)
