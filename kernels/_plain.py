"""The PyTorch twins of the operators: functions that compute an operator if one of its kernels fails.

Signatures, results and layouts match those of the kernels. Both the forward and the backward are written out
by formula (derived in README.md), because operators run below autograd. Norms are computed in fp32 and
rounded where the kernels round. Convolutions are PyTorch's, in the dtype of x; for fp32 they use TF32 if that
is allowed. The building blocks are in _plain_parts.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._convolution import AtenConvolution, Convolution
from ._layout import channels_last, empty_result, in_dtype, like
from ._norm import Norm, empty_statistics
from ._plain_parts import (
    convolution,
    convolution_backward,
    fold_border,
    norm_again,
    norm_backward,
    norm_forward,
    output_padding_of,
    reflected,
    sums,
)
from ._weights import empty_gradients

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def instance_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> Three:
    return norm_forward(x, Norm(weight, bias, eps, act, slope), residual)


def instance_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    return norm_backward(dy, x, Norm(weight, bias, act=act, slope=slope), mean, rstd)


def _conv_input(x: Tensor, normed: bool, norm: Norm) -> Three:
    """Return the input of the convolution, and mean and rstd of x.

    Without a norm, the input is x itself, and mean and rstd are empty.
    """
    if not normed:
        return x, *empty_statistics(x, False)
    return norm_forward(x, norm)


def reflect_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: list[Tensor],
    bias: list[Tensor],
    normed: bool,
    eps: float,
    act: str,
    slope: float,
    padding: int,
    tanh: bool,
    recompute: bool,
) -> Four:
    y, mean, rstd = _conv_input(x, normed, Norm(norm_weight, norm_bias, eps, act, slope))
    y = reflected(y, padding)
    out = convolution(y, weight, bias)
    if tanh:
        out = torch.tanh(out.float())
    saved_y = y if normed and not recompute else empty_result(x)
    return out, mean, rstd, saved_y


def reflect_conv_bwd(
    g: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: list[Tensor],
    out: Tensor,
    y: Tensor,
    act: str,
    slope: float,
    padding: int,
    needs: list[bool],
) -> Four:
    normed, norm = mean.dim() == 2, Norm(norm_weight, norm_bias, act=act, slope=slope)
    dx, dbias, total = empty_result(x), empty_result(x, torch.float32), empty_result(x, torch.float32)
    if out.dim() == 4:
        g = g.float() * (1 - out.float().square())
    g = g.to(x.dtype)
    if y.dim() == 1:
        y = reflected(norm_again(x, norm, mean, rstd), padding)
    dweight = empty_gradients(weight, needs[2:])
    need_input = normed or needs[0]
    dy = convolution_backward(channels_last(g), y, weight, need_input, needs[2:], dweight)
    if dy is not None:
        dx = fold_border(dy, padding)
    if normed:
        dx, total = norm_backward(dx, x, norm, mean, rstd)
    if needs[1]:
        dbias = sums(g, len(weight))
    return dx, dweight, dbias, total


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
) -> Four:
    y, mean, rstd = _conv_input(x, normed, Norm(None, None, eps, act, slope))
    out = convolution(y, weight, bias, Convolution(stride, padding, transposed, output_padding))
    saved_y = y if normed and not recompute else empty_result(x)
    return out, mean, rstd, saved_y


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
) -> Three:
    norm = Norm(None, None, eps, act, slope)
    dx, dbias = empty_result(x), empty_result(x, torch.float32)
    if y.dim() == 1:
        y = norm_again(x, norm, mean, rstd)
    dweight = empty_gradients(weight, needs[2:])
    output_padding = output_padding_of(g, x, weight[0], stride, padding) if transposed else 0
    conv = Convolution(stride, padding, transposed, output_padding)
    dy = convolution_backward(channels_last(g), y, weight, needs[0], needs[2:], dweight, conv)
    if dy is not None:
        dx = dy
        if mean.dim() == 2:
            dx, _ = norm_backward(dy, x, norm, mean, rstd)
    if needs[1]:
        dbias = sums(g, len(weight))
    return dx, dweight, dbias


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
    y, mean, rstd = _conv_input(x, normed, Norm(norm_weight, norm_bias, eps, act, slope))
    y = reflected(y, border)
    out = torch.ops.aten.convolution(y, weight.to(x.dtype), in_dtype(bias, x.dtype), *conv)
    if recompute:
        y = empty_result(x)
    elif y is x:
        # An operator must not return its input.
        y = y.clone()
    return channels_last(out), mean, rstd, y


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
    normed, norm = mean.dim() == 2, Norm(norm_weight, norm_bias, act=act, slope=slope)
    dx, dweight, dbias = empty_result(x), empty_result(x), empty_result(x)
    total = empty_result(x, torch.float32)
    if y.dim() == 1:
        y = reflected(norm_again(x, norm, mean, rstd), border)
    bias_sizes = [AtenConvolution(*conv).out_channels(weight)]
    mask = [normed or needs[0], *needs[1:]]
    gradients = torch.ops.aten.convolution_backward(
        channels_last(g), y, weight.to(x.dtype), bias_sizes, *conv, mask
    )
    if mask[0]:
        dx = fold_border(gradients[0], border)
    if normed:
        dx, total = norm_backward(dx, x, norm, mean, rstd)
    if needs[1]:
        dweight = like(gradients[1], weight)
    if needs[2]:
        dbias = gradients[2].to(weight.dtype)
    return dx, dweight, dbias, total


def residual_block_fwd(
    x: Tensor, weight1: list[Tensor], weight2: list[Tensor], eps: float
) -> tuple[Tensor, ...]:
    c1 = convolution(reflected(x, 1), weight1, [])
    y, mean1, rstd1 = norm_forward(c1, Norm(eps=eps, act="relu", slope=0.0))
    c2 = convolution(reflected(y, 1), weight2, [])
    out, mean2, rstd2 = norm_forward(c2, Norm(eps=eps, act="none", slope=0.0), residual=x)
    return out, c1, c2, mean1, rstd1, mean2, rstd2


def residual_block_bwd(
    g: Tensor,
    x: Tensor,
    c1: Tensor,
    c2: Tensor,
    mean1: Tensor,
    rstd1: Tensor,
    mean2: Tensor,
    rstd2: Tensor,
    weight1: list[Tensor],
    weight2: list[Tensor],
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    g = channels_last(g.to(x.dtype))
    needs1, needs2 = needs[1 : 1 + len(weight1)], needs[1 + len(weight1) :]
    dweight = empty_gradients([*weight1, *weight2], needs[1:])
    first, second = Norm(act="relu", slope=0.0), Norm(act="none", slope=0.0)
    dc2, _ = norm_backward(g, c2, second, mean2, rstd2)
    y = norm_again(c1, first, mean1, rstd1)
    dy = convolution_backward(dc2, reflected(y, 1), weight2, True, needs2, dweight[sum(needs1) :])
    assert dy is not None
    dc1, _ = norm_backward(fold_border(dy, 1), c1, first, mean1, rstd1)
    dx = convolution_backward(dc1, reflected(x, 1), weight1, needs[0], needs1, dweight)
    if dx is None:
        return empty_result(x), dweight
    return like(fold_border(dx, 1).float() + g.float(), x), dweight
