"""The parts of the operators' twins (_plain.py), in PyTorch's operators and without autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._layout import channels_last, like
from ._weight_gradients import each_weight


def empty(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what stands for a result that is not there."""
    return x.new_empty(0, dtype=dtype)


# --- Instance norm ------------------------------------------------------------------------------------------


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    """Return [N, C] or [C] in fp32, to be multiplied with x."""
    shape = (*vector.shape, *(1 for _ in x.shape[2:]))
    return vector.float().view(shape)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sigma [N, C] of x in fp32."""
    if not x.shape[0]:
        # Of no image PyTorch warns.
        return x.new_empty(x.shape[:2], dtype=torch.float32), x.new_empty(x.shape[:2], dtype=torch.float32)
    var, mean = torch.var_mean(x.float(), dim=list(range(2, x.dim())), correction=0)
    return mean, torch.rsqrt(var + eps)


def _affine(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return x-hat and z in fp32."""
    x_hat = (x.float() - _spread(mean, x)) * _spread(rstd, x)
    z = x_hat if weight is None else x_hat * _spread(weight, x)
    return x_hat, z if bias is None else z + _spread(bias, x)


def normalised(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None, act: str, slope: float
) -> Tensor:
    """Return act(IN(x) * weight + bias) in fp32."""
    _, z = _affine(x, mean, rstd, weight, bias)
    return z if act == "none" else torch.where(z > 0, z, z * (0.0 if act == "relu" else slope))


def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return dx, like x, and total [2, N, C]: the sums over each image of dz and of dz * x-hat. README.md has
    the formula.
    """
    x_hat, z = _affine(x, mean, rstd, weight, bias)
    dz = dy.float()
    dz = dz if act == "none" else torch.where(z > 0, dz, dz * (0.0 if act == "relu" else slope))
    pixels = list(range(2, x.dim()))
    total = torch.stack([dz.sum(pixels), (dz * x_hat).sum(pixels)])
    count = x[0, 0].numel() if x.shape[0] else 1
    one, two = (_spread(t / count, x) for t in total)
    scale = _spread(rstd, x) if weight is None else _spread(rstd, x) * _spread(weight, x)
    return like(scale * (dz - one - x_hat * two), x), total


# --- Borders ------------------------------------------------------------------------------------------------


def reflected(x: Tensor, border: int) -> Tensor:
    """Return x [N, C, H, W] with ``border`` reflected pixels on each side in channels_last, x itself without
    border.
    """
    return channels_last(torch.ops.aten.reflection_pad2d(x, [border] * 4)) if border else x


def inside(dy: Tensor, border: int) -> Tensor:
    """Return the gradient of an image from that of its reflected border, in the dtype of ``dy`` and
    channels_last.

    By slices: PyTorch's own operator adds by atomics on a GPU, in the dtype and in any order.
    """
    if not border:
        return channels_last(dy)
    wide = dy.float()
    for dim in (2, 3):
        size = wide.shape[dim] - 2 * border
        inner = wide.narrow(dim, border, size).clone()
        inner.narrow(dim, 1, border).add_(wide.narrow(dim, 0, border).flip(dim))
        inner.narrow(dim, size - 1 - border, border).add_(wide.narrow(dim, border + size, border).flip(dim))
        wide = inner
    return channels_last(wide.to(dy.dtype))


# --- Convolutions of P weights, N / P images each -----------------------------------------------------------


def output_padding_of(g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> int:
    """Return the output_padding of a transposed convolution of x whose output is as g."""
    return g.shape[2] - ((x.shape[2] - 1) * stride - 2 * padding + weight.shape[2])


def convolution(
    y: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    output_padding: int = 0,
) -> Tensor:
    """Return the convolution of y [N, C, H, W] in its dtype, in channels_last."""
    conv = ([stride] * 2, [padding] * 2, [1, 1], transposed, [output_padding] * 2, 1)
    parts = [
        torch.ops.aten.convolution(part, w.to(y.dtype), None if b is None else b.to(y.dtype), *conv)
        for part, w, b in each_weight(y, weight, list(bias) or [None] * len(weight))
    ]
    return channels_last(torch.cat(parts)[: y.shape[0]])


def convolution_backward(
    g: Tensor,
    y: Tensor,
    weight: Sequence[Tensor],
    need_input: bool,
    needs: Sequence[bool],
    dweight: Tensor,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    output_padding: int = 0,
) -> Tensor | None:
    """Return the gradient of y in channels_last, None if not wanted; write those of weights that ``needs``
    names to ``dweight`` in turn.
    """
    conv = ([stride] * 2, [padding] * 2, [1, 1], transposed, [output_padding] * 2, 1)
    targets, inputs = iter(dweight), []
    for (part, w, need), mine in zip(
        each_weight(y, weight, needs), g.chunk(len(weight)) if g.shape[0] else [g] * len(weight), strict=True
    ):
        if need_input or need:
            found = torch.ops.aten.convolution_backward(
                mine, part, w.to(y.dtype), None, *conv, [need_input, need, False]
            )
            inputs.append(found[0])
            if need:
                next(targets).copy_(found[1])
    return channels_last(torch.cat(inputs)[: y.shape[0]]) if need_input else None


def sums(g: Tensor, count: int) -> Tensor:
    """Return the sums of g [N, O, H, W] over pixels and each weight's images, [P, O] in fp32."""
    N, O, H, W = g.shape
    return g.reshape(count, N // count, O, H, W).sum((1, 3, 4), dtype=torch.float32)
