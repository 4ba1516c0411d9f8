"""Norm, activation, reflection padding and PyTorch's convolution as one autograd node.

    y = act(IN(x)) or x, padded with ``border`` reflected pixels;    out = conv(y, weight) + bias

The convolution is PyTorch's (cuDNN on a GPU). The node saves x, two vectors [N, C] and the weight as it was
passed in. (For a 16-bit x, an fp32 weight is rounded on each use, and no rounded copy is saved.) With
``recompute``, it does not save y: the backward of the norm, which reads x anyway, writes y again for the
weight gradient. That saves one tensor per layer and costs one write of it.

The backward has these steps: compute the gradient of y; fold the part of it that belongs to the border, in
place; run the two passes of the norm, of which the second writes dx and y; and compute the weight gradient
from y. This module is internal to the package and used by its networks; ``instance_norm`` is the public
operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._calls import NormConvCall, NormConvSaved
from ._checks import check_pixels, check_vectors
from ._convolution import AtenConvolution
from ._layout import channels_last, empty_channels_last, empty_result, in_dtype, like
from ._norm import Norm, affine_gradients, empty_statistics
from ._operator import operator, refuse_double_backward
from ._overlap import on_side_stream
from ._weight_gradients import gradients_to_add_to

_CONV = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
ConvArgs = tuple[list[int], list[int], list[int], bool, list[int], int]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _check_call(*arguments: Any) -> None:
    call = NormConvCall.of(*arguments)
    x, border = call.x, call.border
    if call.normed:
        check_pixels(x)
        check_vectors("norm_conv", x, call.norm.weight, call.norm.bias)
    if border >= min(x.shape[2:]):
        raise ValueError(
            f"norm_conv: border must be less than the height and width of x, got border {border} and x of"
            f" shape {tuple(x.shape)}"
        )


@operator(
    "(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, bool norm, float eps,"
    f" str act, float slope, int border, bool recompute, {_CONV}, bool required)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _check_call,
)
def norm_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    normed: bool,
    eps: float,
    act: str,
    slope: float,
    border: int,
    recompute: bool,
    *conv: Any,
) -> Four:
    """Return the convolution's output, the mean and rstd [N, C] of x, and y, the convolution's input.

    mean and rstd are empty without a norm, and y is empty if the backward recomputes it.
    """
    norm = Norm(norm_weight, norm_bias, eps, act, slope)
    return forward(NormConvCall(x, normed, norm, weight, bias, border, recompute, AtenConvolution(*conv)))


def forward(call: NormConvCall) -> Four:
    """Run the forward pass; see ``norm_conv_fwd``."""
    from . import border_launch
    from . import instance_norm_launch as host

    x, bias = call.x, in_dtype(call.bias, call.x.dtype)
    mean, rstd = empty_statistics(x, False)
    if call.normed:
        y, mean, rstd = host.forward(x, call.norm, border=call.border)
    else:
        y = border_launch.reflect_pad(x, call.border)
    out = torch.ops.aten.convolution(y, call.weight.to(x.dtype), bias, *call.conv.flat())
    if call.recompute:
        y = empty_result(x)
    return channels_last(out), mean, rstd, y


@norm_conv_fwd.register_fake
def _(*flat: Any) -> Four:
    *arguments, _ = flat
    _check_call(*arguments)
    call = NormConvCall.of(*arguments)
    x, (N, C, H, W) = call.x, call.x.shape
    y = empty_channels_last(x, (N, C, H + 2 * call.border, W + 2 * call.border))
    out = torch.ops.aten.convolution(y, call.weight.to(x.dtype), None, *call.conv.flat())
    if call.recompute:
        y = empty_result(x)
    return empty_channels_last(out, out.shape), *empty_statistics(x, call.normed), y


@operator(
    "(Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, Tensor weight,"
    f" Tensor y, str act, float slope, int border, bool[] needs, {_CONV}, bool required)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def norm_conv_bwd(
    g: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    y: Tensor,
    act: str,
    slope: float,
    border: int,
    needs: list[bool],
    *conv: Any,
) -> Four:
    """Return the gradients dx, dweight and dbias, and the norm's total [2, N, C].

    ``needs`` tells whether x, the weight and the bias need a gradient. Gradients that are not needed are
    empty, but with a norm, dx and total are always computed. Without a norm (mean is empty), total is empty.
    """
    norm = Norm(norm_weight, norm_bias, act=act, slope=slope)
    saved = NormConvSaved(x, norm, mean, rstd, weight, y, border, needs, AtenConvolution(*conv))
    return backward(g, saved)


def backward(g: Tensor, saved: NormConvSaved) -> Four:
    """Run the backward pass; see ``norm_conv_bwd``."""
    from ._tiles import empty_bordered
    from .border_launch import reflect_pad

    x, y, weight, needs, conv = saved.x, saved.y, saved.weight, saved.needs, saved.conv
    recompute = y.dim() == 1
    if recompute:
        # y is written before it is read: the input gradient needs only its shape.
        y = empty_bordered(x, saved.border)
    g, narrow = channels_last(g), weight.to(x.dtype)
    dx, dweight, dbias = empty_result(x), empty_result(x), empty_result(x)
    total = empty_result(x, torch.float32)
    if saved.normed or needs[0]:
        mask = [True, False, False]
        dy, _, _ = torch.ops.aten.convolution_backward(g, y, narrow, None, *conv.flat(), mask)
        written = y if recompute and needs[1] else None
        dx, total = _through_border_and_norm(channels_last(dy), saved, written)
    if recompute and needs[1] and not saved.normed:
        y = reflect_pad(x, saved.border)
    if needs[1] or needs[2]:
        bias_sizes, mask = [conv.out_channels(weight)], [False, *needs[1:]]
        gradients = torch.ops.aten.convolution_backward(g, y, narrow, bias_sizes, *conv.flat(), mask)
        if needs[1]:
            dweight = like(gradients[1], weight)
        if needs[2]:
            dbias = gradients[2].to(weight.dtype)
    return dx, dweight, dbias, total


def _through_border_and_norm(dy: Tensor, saved: NormConvSaved, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return dx and total, given ``dy``, the gradient of the convolution's input.

    If ``y`` is given, the output of the norm is written to it again, with its border.
    """
    from . import border_launch
    from . import instance_norm_launch as host

    x, border = saved.x, saved.border
    if border:
        border_launch.fold_border_(dy, border)
    if not saved.normed:
        inside = dy[:, :, border : border + x.shape[2], border : border + x.shape[3]]
        return channels_last(inside), empty_result(x, torch.float32)
    extras = host.Extras(dy_border=border, y_border=0 if y is None else border, y=y)
    return host.backward(dy, x, saved.norm, saved.mean, saved.rstd, extras)


@norm_conv_bwd.register_fake
def _(g: Tensor, *flat: Any) -> Four:
    *arguments, _ = flat
    saved = NormConvSaved.of(*arguments)
    x, weight, needs = saved.x, saved.weight, saved.needs
    dx = torch.empty_like(x) if saved.normed or needs[0] else empty_result(x)
    dweight = torch.empty_like(weight) if needs[1] else empty_result(x)
    dbias = weight.new_empty(saved.conv.out_channels(weight)) if needs[2] else empty_result(x)
    total = (2, *x.shape[:2]) if saved.normed else (0,)
    return dx, dweight, dbias, x.new_empty(total, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *flat, ctx.required = inputs
    call = NormConvCall.of(*flat)
    _, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    norm, ctx.conv = call.norm, call.conv
    ctx.options = (norm.act, norm.slope, call.border)
    ctx.save_for_backward(call.x, norm.weight, norm.bias, mean, rstd, call.weight, y)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 18
    needs_x, needs_nw, needs_nb, needs_w, needs_b = ctx.needs_input_grad[:5]
    needs = [needs_x, needs_w, needs_b]
    saved = NormConvSaved.of(*ctx.saved_tensors, *ctx.options, needs, *ctx.conv.flat())
    dx, dweight, dbias, total = norm_conv_bwd(g, *saved.flat(), ctx.required)
    if needs_w and _added_in_place(dweight, saved.weight):
        needs_w = False
    d_norm = affine_gradients(total, saved.norm, (needs_nw, needs_nb))
    gradients: list[Tensor | None] = []
    for gradient, need in ((dx, needs_x), (dweight, needs_w), (dbias, needs_b)):
        gradients.append(gradient if need else None)
    return (gradients[0], *d_norm, *gradients[1:], *(None,) * 13)


def _added_in_place(dweight: Tensor, weight: Tensor) -> bool:
    """Add ``dweight`` to the ``.grad`` of ``weight`` if that is allowed, and return whether it was added."""
    into = gradients_to_add_to([weight], [True])
    if into is None or dweight.dtype != into[0].dtype:
        return False
    # Additions to this gradient must stay in order, and kernels for other uses of the weight may run on a
    # side stream during the backward pass.
    with on_side_stream(dweight):
        into[0].add_(dweight)
    return True


norm_conv_fwd.register_autograd(_backward, setup_context=_setup)
norm_conv_bwd.register_autograd(refuse_double_backward("norm_conv"))


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: ConvArgs,
    *,
    norm: bool = True,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    border: int = 0,
    recompute: bool = True,
    required: bool = True,
) -> Tensor:
    """Convolve act(IN(x)), or x if ``norm`` is false, after padding it with ``border`` reflected pixels.

    x: [N, C, H, W] in channels_last. weight and bias: both in the dtype of x, or both in fp32. ``conv``:
    stride, padding, dilation, transposed, output_padding and groups, as for ``torch.ops.aten.convolution``.
    ``recompute``: whether the backward recomputes y, so that it need not be saved; see the module docstring.
    If ``required`` is true, a kernel that fails raises KernelError; if it is false, PyTorch computes the
    result instead. The result is [N, O, H', W'] in channels_last.

    Raises ValueError if the border is not less than H and W, if a single pixel is to be normalised, or if the
    norm has a different number of channels than x.
    """
    tensors = (x, norm_weight, norm_bias, weight, bias)
    options = (norm, eps, act, slope, border, recompute)
    return torch.ops.fastcyclegan.norm_conv_fwd(*tensors, *options, *conv, required)[0]
