"""Zero-padded convolution, of stride 1 or 2 or transposed, with an optional norm before it.

    y = act(IN(x)) or x;    out = conv(y, weight) + bias, or conv_transpose(y, weight) + bias

This is one autograd node. There can be one weight or P of them: image n uses weight n // (N / P), so that
several networks run in one launch. ``norm_conv.py`` is the counterpart that uses PyTorch's convolution, with
one weight per call. Contract:

    x           [N, C, H, W] channels_last, fp32, bf16 or fp16
    weight      P tensors [O, C, k, k] (if transposed: [C, O, k, k]),
                in the dtype of x or fp32 (rounded on each use)
    bias        an empty list, or P tensors [O] in the dtype of x or fp32
    out         [N, O, H', W'] channels_last in the dtype of x; sums in fp32
    saved       x, mean and rstd [N, C] of the norm,
                weights and biases as passed in; also y with ``recompute=False``
    unsupported kernels larger than 7, strides above 2, padding of the kernel's size or more, dilation, groups
                (see ``serves``); double backward

A transposed convolution is the adjoint of a strided one with the same weight, so the forward of the one and
the input gradient of the other use the same matrix product. README.md beside this file derives the three
products. The kernels are in zero_conv_triton.py; tiles, launches and passes are in zero_conv_launch.py. This
module is internal to the package.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._calls import ZeroConvCall, ZeroConvSaved
from ._checks import check_alike, check_images, check_pixels
from ._convolution import Convolution
from ._fallback import backward_in_place
from ._layout import channels_last, empty_channels_last, empty_result, in_dtype
from ._norm import Norm, empty_statistics
from ._operator import operator, refuse_double_backward
from ._overlap import on_side_stream
from ._weight_gradients import each_weight, gradients_to_add_to, spread, spread_bias
from .dispatch import DTYPES
from .instance_norm import ACTS, instance_norm_ref


def zero_conv_ref(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    *,
    stride: int,
    padding: int,
    transposed: bool = False,
    output_padding: int = 0,
    norm: bool = False,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
) -> Tensor:
    """Compute ``zero_conv`` in plain PyTorch. This is the reference that the kernels must match."""
    y = instance_norm_ref(x, eps=eps, act=act, slope=slope) if norm else x
    biases = list(bias) if bias else [None] * len(weight)
    parts = []
    for share, w, b in each_weight(y, weight, biases):
        w, b = w.to(x.dtype), in_dtype(b, x.dtype)
        if transposed:
            parts.append(F.conv_transpose2d(share, w, b, stride, padding, output_padding))
        else:
            parts.append(F.conv2d(share, w, b, stride, padding))
    return torch.cat(parts)


def serves(
    x_channels: int,
    weight_shape: Sequence[int],
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
) -> bool:
    """Return whether the kernels support a convolution with these options.

    ``x_channels`` is the number of input channels. The weight is [O, C, k, k], or [C, O, k, k] if transposed.
    """
    return Convolution(stride, padding, transposed, output_padding).fits(x_channels, weight_shape)


# --- Operators ----------------------------------------------------------------------------------------------

_CONV = "int stride, int padding, bool transposed"


def _check(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    norm: bool,
    act: str,
    conv: Convolution,
) -> None:
    check_images("zero_conv", x)
    if x.dtype not in DTYPES:
        raise TypeError(f"zero_conv: x must be float32, bfloat16 or float16, got {x.dtype}")
    if not weight or x.shape[0] % len(weight):
        raise ValueError(
            "zero_conv: the batch size must be a multiple of the number of weights, got a batch of"
            f" {x.shape[0]} and {len(weight)} weights"
        )
    check_alike("zero_conv", "weight", x, weight)
    check_alike("zero_conv", "bias", x, bias)
    if not conv.fits(x.shape[1], weight[0].shape):
        layout = f"[O, {x.shape[1]}, k, k]"
        if conv.transposed:
            layout = f"[{x.shape[1]}, O, k, k]"
        raise ValueError(
            f"zero_conv: weight must be {layout} with k at most 7, a stride of 1 or 2, a padding below k and"
            f" an output_padding below the stride, got {list(weight[0].shape)}, stride {conv.stride}, padding"
            f" {conv.padding} and output_padding {conv.output_padding}"
        )
    shape = conv.out_shape(x, weight[0])
    if min(shape[2:]) < 1:
        raise ValueError(
            f"zero_conv: x must be large enough for the kernel, got shape {tuple(x.shape)}, for which the"
            f" output would have shape {list(shape)}"
        )
    if bias and (len(bias) != len(weight) or bias[0].shape != (shape[1],)):
        raise ValueError(
            f"zero_conv: bias must be empty or have one tensor of shape [{shape[1]}] per weight"
            f" ({len(weight)} in total), got {len(bias)} of shape {list(bias[0].shape)}"
        )
    if act not in ACTS or (act != "none" and not norm):
        raise ValueError(f"zero_conv: act must be one of {', '.join(ACTS)} (without norm: none), got {act!r}")


def _check_call(*arguments: Any) -> None:
    call = ZeroConvCall.of(*arguments)
    _check(call.x, call.weight, call.bias, call.normed, call.norm.act, call.conv)
    if call.normed:
        check_pixels(call.x)


@operator(
    f"(Tensor x, Tensor[] weight, Tensor[] bias, {_CONV}, int output_padding, bool norm, float eps, str act,"
    " float slope, bool recompute, bool required) -> (Tensor, Tensor, Tensor, Tensor)",
    _check_call,
)
def zero_conv_fwd(
    x: Tensor,
    weight: list[Tensor],
    bias: list[Tensor],
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
    normed: bool,
    eps: float,
    act: str,
    slope: float,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the convolution's output, the mean and rstd [N, C] of x, and y, the output of the norm.

    mean and rstd are empty without a norm. y is empty if there is no norm or the backward recomputes it.
    """
    conv = Convolution(stride, padding, transposed, output_padding)
    norm = Norm(None, None, eps, act, slope)
    return forward(ZeroConvCall(x, weight, bias, conv, normed, norm, recompute))


def forward(call: ZeroConvCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward pass; see ``zero_conv_fwd``."""
    from . import instance_norm_launch
    from . import zero_conv_launch as host
    from ._weights import stacked

    x, weight, conv = call.x, call.weight, call.conv
    y = x
    mean, rstd = empty_statistics(x, False)
    if call.normed:
        y, mean, rstd = instance_norm_launch.forward(x, call.norm)
    _, _, H, W = conv.out_shape(x, weight[0])
    form = host.Form.of(weight[0], conv)
    out = host.forward(y, stacked(weight, x.dtype), call.bias, form, (H, W))
    if not call.keeps_y:
        y = empty_result(x)
    return out, mean, rstd, y


@zero_conv_fwd.register_fake
def _(*flat: Any) -> tuple[Tensor, ...]:
    *arguments, _ = flat
    _check_call(*arguments)
    call = ZeroConvCall.of(*arguments)
    x = call.x
    out = empty_channels_last(x, call.conv.out_shape(x, call.weight[0]))
    y = torch.empty_like(x) if call.keeps_y else empty_result(x)
    return out, *empty_statistics(x, call.normed), y


@operator(
    f"(Tensor g, Tensor x, Tensor mean, Tensor rstd, Tensor[] weight, Tensor y, {_CONV}, float eps, str act,"
    " float slope, bool[] needs, bool required) -> (Tensor, Tensor, Tensor)"
)
def zero_conv_bwd(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: list[Tensor],
    y: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    eps: float,
    act: str,
    slope: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients dx, dweight [R, *, *, k, k] for the R weights that need one, and dbias [P, O].

    The entries of ``needs`` tell whether x, the biases and each weight need a gradient. Gradients that are
    not needed are empty. mean is empty without a norm, and y is empty if it must be recomputed.
    """
    from ._weights import empty_gradients

    conv = Convolution(stride, padding, transposed)
    norm = Norm(None, None, eps, act, slope)
    saved = ZeroConvSaved(x, mean, rstd, weight, y, conv, norm)
    dweight = empty_gradients(weight, needs[2:])
    dx, dbias = backward(g, saved, needs, list(dweight), False)
    return dx, dweight, dbias


def backward(
    g: Tensor, saved: ZeroConvSaved, needs: Sequence[bool], into: Sequence[Tensor], accumulate: bool
) -> tuple[Tensor, Tensor]:
    """Run the backward pass (see ``zero_conv_bwd``) and return dx and dbias.

    The weight gradients are written to ``into``, or added to it if ``accumulate`` is True.
    """
    from . import zero_conv_launch as host
    from ._weights import stacked
    from .instance_norm_launch import Extras
    from .instance_norm_launch import backward as norm_backward
    from .instance_norm_launch import forward as norm_forward

    x, y, weight = saved.x, saved.y, saved.weight
    g, form = channels_last(g), host.Form.of(weight[0], saved.conv)
    recompute = saved.normed and y.dim() == 1 and any(needs[2:])
    fine = host.fine_gradient(g, form) if needs[0] or any(needs[2:]) else None
    dx = empty_result(x)
    if needs[0]:
        dx = host.input_gradient(g, fine, stacked(weight, x.dtype), (x.shape[2], x.shape[3]), form)
        if saved.normed:
            extras = Extras()
            if recompute:
                y = torch.empty_like(x)
                extras = Extras(y=y)
            dx, _ = norm_backward(dx, x, saved.norm, saved.mean, saved.rstd, extras)
    elif recompute:
        y, _, _ = norm_forward(x, saved.norm)
    if any(needs[2:]):
        source = y if saved.normed else x
        read = (g, source) if fine is None else (g, source, fine.pixels.data)
        with on_side_stream(*read, when=accumulate):
            images = host.coarse_and_fine(g, fine, source, form)
            host.weight_gradients(*images, form, weight, needs[2:], into, accumulate)
    dbias = host.bias_gradient(g, len(weight)) if needs[1] else empty_result(x, torch.float32)
    return dx, dbias


@zero_conv_bwd.register_fake
def _(g: Tensor, *flat: Any) -> tuple[Tensor, ...]:
    from ._weights import empty_gradients

    *arguments, needs, _ = flat
    saved = ZeroConvSaved.of(*arguments)
    x, weight = saved.x, saved.weight
    dx = torch.empty_like(x) if needs[0] else empty_result(x)
    bias = (len(weight), g.shape[1]) if needs[1] else (0,)
    return dx, empty_gradients(weight, needs[2:]), x.new_empty(bias, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *flat, ctx.required = inputs
    call = ZeroConvCall.of(*flat)
    _, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    ctx.conv, ctx.norm, ctx.count = call.conv, call.norm, len(call.weight)
    ctx.save_for_backward(call.x, mean, rstd, y, *call.weight, *call.bias)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 13
    x, mean, rstd, y, *weight = ctx.saved_tensors
    weight, bias = weight[: ctx.count], weight[ctx.count :]
    saved = ZeroConvSaved(x, mean, rstd, weight, y, ctx.conv, ctx.norm)
    needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]
    needs = [needs_x, any(needs_b), *needs_w]
    flat = (g, *saved.flat(), needs)
    into = gradients_to_add_to(weight, needs_w)
    if into is None:
        dx, dweight, dbias = torch.ops.fastcyclegan.zero_conv_bwd(*flat, ctx.required)
        dweights = spread(dweight, needs_w)
    else:
        run = functools.partial(backward, g, saved, needs, into, True)
        dx, dbias = backward_in_place("zero_conv_bwd", run, flat, into, ctx.required)
        dweights = [None] * len(weight)
    return (dx if needs_x else None, dweights, spread_bias(dbias, bias, needs_b), *(None,) * 10)


zero_conv_fwd.register_autograd(_backward, setup_context=_setup)
zero_conv_bwd.register_autograd(refuse_double_backward("zero_conv"))


# --- The function -------------------------------------------------------------------------------------------


def zero_conv(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    *,
    stride: int,
    padding: int,
    transposed: bool = False,
    output_padding: int = 0,
    norm: bool = False,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    recompute: bool = True,
    required: bool = True,
) -> Tensor:
    """Apply a zero-padded convolution, or a transposed one, to act(IN(x)), or to x if ``norm`` is false.

    x: [N, C, H, W]; channels_last memory is read directly, and any other layout is copied once. weight: P
    tensors. bias: P tensors, or an empty list. The module docstring describes both. If ``recompute`` is true,
    the backward recomputes y; otherwise y is saved. If ``required`` is true, a kernel that fails raises
    KernelError; if it is false, PyTorch computes the result instead. The result is [N, O, H', W'] in
    channels_last.

    Raises ValueError for an invalid shape or option and TypeError for an unsupported dtype; the message names
    the argument.
    """
    check_images("zero_conv", x)
    tensors = (channels_last(x), list(weight), list(bias))
    conv = (stride, padding, transposed, output_padding)
    options = (norm, eps, act, slope, recompute, required)
    return torch.ops.fastcyclegan.zero_conv_fwd(*tensors, *conv, *options)[0]
