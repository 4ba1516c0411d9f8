"""What the public functions and the networks call on a processor: norms, convolutions, residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._convolution import AtenConvolution, Convolution
from .._layout import channels_last, dense
from .._norm import Norm
from .._weight_gradients import each_weight
from ..dispatch import asks_gradient

# Registers the gradients of the operators.
from . import autograd  # noqa: F401


def norm(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
    """Return act(IN(x)) + residual in the layout of x, by the C++ kernel. x is copied if it is not dense."""
    tensors = (dense(x), norm.weight, norm.bias, residual)
    y: Tensor = torch.ops.fastcyclegan.cpp_norm(*tensors, norm.eps, norm.act, norm.slope)[0]
    return y


def norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv: AtenConvolution,
    *,
    norm: Norm | None = None,
    border: int = 0,
    recompute: bool = True,
    float_out: bool = False,
    required: bool = False,
) -> Tensor:
    """Convolve act(IN(x)), or x if ``norm`` is None, after padding it with ``border`` reflected pixels.

    x: [N, C, H, W] in any layout, fp32 or bf16. weight and bias: in the dtype of x, or fp32 (then rounded on
    use). If ``recompute`` is false, the output of the norm is kept for the backward, which otherwise computes
    it again. If ``required`` is true, the C++ kernels compute every convolution that they support; otherwise
    only those for which they were measured to be faster than PyTorch. The result is in channels_last, and in
    the dtype of x or, with ``float_out``, in fp32.
    """
    given = norm if norm is not None else Norm()
    tensors = (channels_last(x), given.weight, given.bias, weight, bias)
    # y is kept only for a gradient, and not in a compiled graph, because its size depends on what is chosen.
    recompute = recompute or torch.compiler.is_compiling() or not asks_gradient(x, tensors[1:])
    options = (norm is not None, given.eps, given.act, given.slope, border, recompute)
    by = "cpp" if required else "auto"
    out: Tensor = torch.ops.fastcyclegan.cpp_norm_conv(*tensors, *options, *conv.flat(), float_out, by)[0]
    return out


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
