"""Every operator in PyTorch's own: what computes it where one of its kernels fails. Same signatures and
results, the same layouts.

Forward and backward by formula (README.md derives them), since operators run below autograd. Norms are
computed in fp32 and rounded where the kernels round; convolutions in the dtype of x by PyTorch, in TF32 where
it may. The parts are in _plain_parts.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._layout import channels_last, like
from ._plain_parts import (
    convolution,
    convolution_backward,
    empty,
    inside,
    norm_backward,
    normalised,
    output_padding_of,
    reflected,
    statistics,
    sums,
)
from ._weights import empty_gradients

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def instance_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = statistics(x, eps)
    y = normalised(x, mean, rstd, weight, bias, act, slope)
    return like(y if residual is None else y + residual.float(), x), mean, rstd


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
    return norm_backward(dy, x, weight, bias, mean, rstd, act, slope)


def reflect_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: list[Tensor],
    bias: list[Tensor],
    norm: bool,
    eps: float,
    act: str,
    slope: float,
    padding: int,
    tanh: bool,
    recompute: bool,
) -> Four:
    y, mean, rstd = x, empty(x, torch.float32), empty(x, torch.float32)
    if norm:
        y, mean, rstd = instance_norm_fwd(x, norm_weight, norm_bias, None, eps, act, slope)
    y = reflected(y, padding)
    out = convolution(y, weight, bias)
    out = torch.tanh(out.float()) if tanh else out
    return out, mean, rstd, y if norm and not recompute else empty(x)


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
    norm, dx, total = mean.dim() == 2, empty(x), empty(x, torch.float32)
    g = (g.float() * (1 - out.float().square()) if out.dim() == 4 else g).to(x.dtype)
    if y.dim() == 1:
        y = reflected(
            like(normalised(x, mean, rstd, norm_weight, norm_bias, act, slope), x) if norm else x, padding
        )
    dweight = empty_gradients(weight, needs[2:])
    dy = convolution_backward(channels_last(g), y, weight, norm or needs[0], needs[2:], dweight)
    if dy is not None:
        dx = inside(dy, padding)
    if norm:
        dx, total = norm_backward(dx, x, norm_weight, norm_bias, mean, rstd, act, slope)
    return dx, dweight, sums(g, len(weight)) if needs[1] else empty(x, torch.float32), total


def zero_conv_fwd(
    x: Tensor,
    weight: list[Tensor],
    bias: list[Tensor],
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
    norm: bool,
    eps: float,
    act: str,
    slope: float,
    recompute: bool,
) -> Four:
    y, mean, rstd = x, empty(x, torch.float32), empty(x, torch.float32)
    if norm:
        y, mean, rstd = instance_norm_fwd(x, None, None, None, eps, act, slope)
    out = convolution(y, weight, bias, stride, padding, transposed, output_padding)
    return out, mean, rstd, y if norm and not recompute else empty(x)


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
    norm, dx = mean.dim() == 2, empty(x)
    if y.dim() == 1:
        y = like(normalised(x, mean, rstd, None, None, act, slope), x) if norm else x
    dweight = empty_gradients(weight, needs[2:])
    conv = (
        stride,
        padding,
        transposed,
        output_padding_of(g, x, weight[0], stride, padding) if transposed else 0,
    )
    dy = convolution_backward(channels_last(g), y, weight, needs[0], needs[2:], dweight, *conv)
    if dy is not None:
        dx = norm_backward(dy, x, None, None, mean, rstd, act, slope)[0] if norm else dy
    return dx, dweight, sums(g, len(weight)) if needs[1] else empty(x, torch.float32)


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
) -> Four:
    y, mean, rstd = x, empty(x, torch.float32), empty(x, torch.float32)
    if norm:
        y, mean, rstd = instance_norm_fwd(x, norm_weight, norm_bias, None, eps, act, slope)
    y = reflected(y, border)
    out = torch.ops.aten.convolution(y, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), *conv)
    # No operator may return x itself.
    return channels_last(out), mean, rstd, empty(x) if recompute else y.clone() if y is x else y


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
    norm, dx, total = mean.dim() == 2, empty(x), empty(x, torch.float32)
    if y.dim() == 1:
        y = reflected(
            like(normalised(x, mean, rstd, norm_weight, norm_bias, act, slope), x) if norm else x, border
        )
    _, _, _, transposed, _, groups = conv
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    mask = [norm or needs[0], *needs[1:]]
    found = torch.ops.aten.convolution_backward(
        channels_last(g), y, weight.to(x.dtype), [channels], *conv, mask
    )
    if mask[0]:
        dx = inside(found[0], border)
    if norm:
        dx, total = norm_backward(dx, x, norm_weight, norm_bias, mean, rstd, act, slope)
    dweight = like(found[1], weight) if needs[1] else empty(x)
    return dx, dweight, found[2].to(weight.dtype) if needs[2] else empty(x), total


def residual_block_fwd(
    x: Tensor, weight1: list[Tensor], weight2: list[Tensor], eps: float
) -> tuple[Tensor, ...]:
    c1 = convolution(reflected(x, 1), weight1, [])
    y, mean1, rstd1 = instance_norm_fwd(c1, None, None, None, eps, "relu", 0.0)
    c2 = convolution(reflected(y, 1), weight2, [])
    out, mean2, rstd2 = instance_norm_fwd(c2, None, None, x, eps, "none", 0.0)
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
    dc2, _ = norm_backward(g, c2, None, None, mean2, rstd2, "none", 0.0)
    y = like(normalised(c1, mean1, rstd1, None, None, "relu", 0.0), c1)
    dy = convolution_backward(dc2, reflected(y, 1), weight2, True, needs2, dweight[sum(needs1) :])
    assert dy is not None
    dc1, _ = norm_backward(inside(dy, 1), c1, None, None, mean1, rstd1, "relu", 0.0)
    dx = convolution_backward(dc1, reflected(x, 1), weight1, needs[0], needs1, dweight)
    return empty(x) if dx is None else like(inside(dx, 1).float() + g.float(), x), dweight
