"""Instance norm in two steps: the statistics of a region, and a norm whose statistics are given.

    variance, mean = var_mean(x)
    y = act((x - mean) / sqrt(variance + eps) * weight + bias) + residual

An image that is too large to be computed at once is computed in regions. The statistics of its norms are
those of all regions together, which ``fastcyclegan.tiles`` combines by Chan's rule. x is [1, C, H, W] in
channels_last, or a part of such a map, whose rows do not follow one another in memory. There are no
gradients. As everywhere, statistics are computed in fp32, from the values as stored; in fp64, PyTorch's
operators compute all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._layout import channels_last
from ._norm import Norm
from .dispatch import Impl


def region_moments(x: Tensor, impl: Impl) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance [C] of x [1, C, H, W], in fp32, or fp64 if x has it."""
    if impl == "cpp":
        from .cpu import functions

        return functions.region_moments(_pixels_last(x))
    if impl == "triton":
        from . import instance_norm_launch

        return instance_norm_launch.whole_moments(channels_last(x))
    variance, mean = torch.var_mean(_wide(x), dim=(2, 3), correction=0)
    return mean[0], variance[0]


def normalise_region(
    x: Tensor, norm: Norm, mean: Tensor, variance: Tensor, impl: Impl, residual: Tensor | None = None
) -> Tensor:
    """Return the norm of x [1, C, H, W], dense in channels_last and in the dtype of x.

    mean and variance: [C], in fp32, or fp64 if x has it. residual: like x, and added after the activation. If
    it has another dtype, the result has the one to which PyTorch promotes both.
    """
    if residual is not None and residual.dtype != x.dtype:
        return channels_last(residual + normalise_region(x, norm, mean, variance, impl))
    if impl == "cpp":
        from .cpu import functions

        near = None if residual is None else _pixels_last(residual)
        return functions.normalised_region(_pixels_last(x), norm, mean, _rstd(variance, norm), near)
    if impl == "triton":
        from . import instance_norm_launch

        dense = None if residual is None else channels_last(residual)
        return instance_norm_launch.with_statistics(channels_last(x), norm, mean, variance, dense)
    z = (_wide(x) - _spread(mean)).mul_(_spread(_rstd(variance, norm)))
    if norm.weight is not None:
        z.mul_(_spread(norm.weight))
    if norm.bias is not None:
        z.add_(_spread(norm.bias))
    if norm.act != "none":
        z = z.relu_() if norm.act == "relu" else F.leaky_relu_(z, norm.slope)
    if residual is not None:
        z.add_(residual)
    return channels_last(z.to(x.dtype))


def _pixels_last(x: Tensor) -> Tensor:
    """Return x if it is a part of a map in channels_last, or a copy that is."""
    _, C, H, W = x.shape
    _, channel, row, pixel = x.stride()
    is_part = (C == 1 or channel == 1) and (W == 1 or pixel == C) and (H == 1 or row >= W * C)
    return x if is_part else channels_last(x)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _rstd(variance: Tensor, norm: Norm) -> Tensor:
    return torch.rsqrt(variance + norm.eps)


def _spread(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)
