"""A convolution with what comes before it: instance norm and activation, or nothing, and a reflected border.
One autograd node.

    y = act(IN(x)) or x, with ``border`` reflected pixels around it;    out = conv(y, weight) + bias

The convolution is PyTorch's (cuDNN on a GPU). The node keeps x, two vectors [N, C] and the weight as it was
given (a weight in fp32 for x in 16 bits is rounded for each use, and no copy is kept), not y: the backward
pass of the norm, which reads x anyway, writes y again for the weight gradient (``recompute``). That saves one
tensor a layer and costs one write of it.

Backward, in order: gradient of y by the convolution; the border's share folded in place; the norm's two
passes, the second of which writes dx and y; then the weight's gradient from y. Internal to the package: its
networks use it, and ``instance_norm`` is the public operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_pixels, check_vectors
from ._layout import channels_last, like
from ._operator import operator, refuse_double_backward
from ._overlap import beside
from ._weight_gradients import gradients_to_add_to
from .instance_norm import affine_gradients

_CONV = "int[] stride, int[] padding, int[] dilation, bool transposed, int[] output_padding, int groups"
_NORM = "bool norm, float eps, str act, float slope, int border"
ConvArgs = tuple[list[int], list[int], list[int], bool, list[int], int]


@operator(
    f"(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, {_NORM}, bool"
    f" recompute, {_CONV}, bool required) -> (Tensor, Tensor, Tensor, Tensor)"
)
def norm_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    norm: bool,
    eps: float,
    act: str,
    slope: float,
    border: int,
    recompute: bool,
    *conv: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the convolution's output, mean and rstd [N, C] (empty without norm), and y (empty where the
    backward recomputes it).
    """
    from . import border_launch
    from . import instance_norm_launch as host

    mean, rstd = (x.new_empty(0, dtype=torch.float32) for _ in range(2))
    if norm:
        y, mean, rstd = host.forward(x, norm_weight, norm_bias, None, eps, act, slope, border)
    else:
        y = border_launch.reflect_pad(x, border)
    out = torch.ops.aten.convolution(y, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *conv)
    return channels_last(out), mean, rstd, x.new_empty(0) if recompute else y


@norm_conv_fwd.register_fake
def _(
    x: Tensor, norm_weight: Any, norm_bias: Any, weight: Tensor, bias: Any, norm: bool, *rest: Any
) -> tuple[Tensor, ...]:
    _, _, _, border, recompute, *conv, _ = rest
    shape = (x.shape[0], x.shape[1], x.shape[2] + 2 * border, x.shape[3] + 2 * border)
    y = x.new_empty(shape).contiguous(memory_format=torch.channels_last)
    out = torch.ops.aten.convolution(y, weight.to(x.dtype), None, *conv)
    mean, rstd = (x.new_empty(x.shape[:2] if norm else (0,), dtype=torch.float32) for _ in range(2))
    out = torch.empty(out.shape, dtype=out.dtype, device=out.device, memory_format=torch.channels_last)
    kept = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out, mean, rstd, x.new_empty(0) if recompute else kept


@operator(
    "(Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, Tensor weight,"
    f" Tensor y, str act, float slope, int border, bool[] needs, {_CONV}, bool required) -> (Tensor, Tensor,"
    " Tensor, Tensor)"
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dweight, dbias and the norm's total [2, N, C]; ``needs`` says of input, weight and bias
    whether they want a gradient.

    What is not wanted is empty. Without norm (mean is empty) total is empty too; with it dx and total are
    always made.
    """
    from . import border_launch
    from . import instance_norm_launch as host
    from ._tiles import empty_bordered

    norm, recompute = mean.dim() == 2, y.dim() == 1
    if recompute:
        # Not read before it is written: the gradient of the input needs its shape alone.
        y = empty_bordered(x, border)
    g, narrow = channels_last(g), weight.to(x.dtype)
    (dx, dweight, dbias), total = (x.new_empty(0) for _ in range(3)), x.new_empty(0, dtype=torch.float32)
    if norm or needs[0]:
        dy = channels_last(
            torch.ops.aten.convolution_backward(g, y, narrow, None, *conv, [True, False, False])[0]
        )
        if border:
            border_launch.fold_border_(dy, border)
        if norm:
            written = y if recompute and needs[1] else None
            extras = host.Extras(dy_border=border, y_border=border if written is not None else 0)
            dx, total = host.backward(dy, x, norm_weight, norm_bias, mean, rstd, act, slope, extras, written)
        else:
            dx = channels_last(dy[:, :, border : border + x.shape[2], border : border + x.shape[3]])
    if recompute and needs[1] and not norm:
        y = border_launch.reflect_pad(x, border)
    if needs[1] or needs[2]:
        wanted = torch.ops.aten.convolution_backward(
            g, y, narrow, [_out_channels(weight, conv)], *conv, [False, *needs[1:]]
        )
        dweight = like(wanted[1], weight) if needs[1] else dweight
        dbias = wanted[2].to(weight.dtype) if needs[2] else dbias
    return dx, dweight, dbias, total


def _out_channels(weight: Tensor, conv: Any) -> int:
    _, _, _, transposed, _, groups = conv
    return weight.shape[1] * groups if transposed else weight.shape[0]


@norm_conv_bwd.register_fake
def _(
    g: Tensor,
    x: Tensor,
    norm_weight: Any,
    norm_bias: Any,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    _, _, _, _, needs, *conv, _ = rest
    norm = mean.dim() == 2
    return (
        torch.empty_like(x) if norm or needs[0] else x.new_empty(0),
        torch.empty_like(weight) if needs[1] else x.new_empty(0),
        weight.new_empty(_out_channels(weight, conv)) if needs[2] else x.new_empty(0),
        x.new_empty((2, *x.shape[:2]) if norm else (0,), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, norm_weight, norm_bias, weight, _, _, _, ctx.act, ctx.slope, ctx.border, _, *ctx.conv, ctx.required = (
        inputs
    )
    _, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, norm_weight, norm_bias, mean, rstd, weight, y)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    x, norm_weight, norm_bias, mean, rstd, weight, y = ctx.saved_tensors
    needs_x, needs_nw, needs_nb, *needs_conv = ctx.needs_input_grad[:5]
    if g is None:
        return (None,) * 18
    needs = [needs_x, *needs_conv]
    saved = (x, norm_weight, norm_bias, mean, rstd, weight, y)
    dx, dweight, dbias, total = norm_conv_bwd(
        g, *saved, ctx.act, ctx.slope, ctx.border, needs, *ctx.conv, ctx.required
    )
    if (into := gradients_to_add_to([weight], [needs[1]])) and dweight.dtype == into[0].dtype:
        # In the order of all that is added to this gradient: other uses of the weight may be kernels beside
        # the backward pass.
        with beside(dweight):
            into[0].add_(dweight)
        needs = [needs[0], False, needs[2]]
    d_norm = affine_gradients(total, norm_weight if needs_nw else None, norm_bias if needs_nb else None)
    wanted = [d if need else None for d, need in zip((dx, dweight, dbias), needs, strict=True)]
    return (wanted[0], *d_norm, *wanted[1:], *(None,) * 13)


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
    """Return conv(act(IN(x)) with ``border`` reflected pixels), [N, O, H', W'] in channels_last;
    ``norm=False``: conv(x with the border).

    x: [N, C, H, W] in channels_last. weight and bias: in the dtype of x or fp32, both alike. ``conv``:
    stride, padding, dilation, transposed, output_padding and groups, as ``torch.ops.aten.convolution`` takes
    them. See the module for what is kept. ``required``: a kernel that fails raises KernelError, else PyTorch
    computes it. Raises ValueError for a border that is not less than H and W, a single pixel to be
    normalised, or a norm of other channels than x has.
    """
    if norm:
        check_pixels(x)
        check_vectors("norm_conv", x, norm_weight, norm_bias)
    if border >= min(x.shape[2:]):
        raise ValueError(
            f"norm_conv: border must be less than the sides of x, got {border} for shape {tuple(x.shape)}"
        )
    arguments = (
        x,
        norm_weight,
        norm_bias,
        weight,
        bias,
        norm,
        eps,
        act,
        slope,
        border,
        recompute,
        *conv,
        required,
    )
    return torch.ops.fastcyclegan.norm_conv_fwd(*arguments)[0]
