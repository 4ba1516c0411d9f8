"""Building blocks of the operators' PyTorch twins in _plain.py. They do not use autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._convolution import Convolution
from ._layout import channels_last, in_dtype, like
from ._norm import Norm, empty_statistics
from ._weight_gradients import each_weight

# --- Instance norm ------------------------------------------------------------------------------------------


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    """Return ``vector`` [N, C] or [C] in fp32, in a shape that broadcasts with x."""
    shape = (*vector.shape, *[1] * (x.dim() - 2))
    return vector.float().view(shape)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sigma [N, C] of x in fp32."""
    if not x.shape[0]:
        # PyTorch warns if there are no images.
        return empty_statistics(x)
    var, mean = torch.var_mean(x.float(), dim=list(range(2, x.dim())), correction=0)
    return mean, torch.rsqrt(var + eps)


def _affine(x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return x-hat and z = x-hat * weight + bias in fp32."""
    x_hat = (x.float() - _spread(mean, x)) * _spread(rstd, x)
    z = x_hat
    if norm.weight is not None:
        z = z * _spread(norm.weight, x)
    if norm.bias is not None:
        z = z + _spread(norm.bias, x)
    return x_hat, z


def _activated(values: Tensor, z: Tensor, norm: Norm) -> Tensor:
    """Return ``values``, multiplied by the activation's slope wherever z is not above 0.

    With z as ``values``, this is the activation. With the output's gradient, it is the gradient of z.
    """
    if norm.act == "none":
        return values
    slope = 0.0 if norm.act == "relu" else norm.slope
    return torch.where(z > 0, values, values * slope)


def normalised(x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return act(IN(x) * weight + bias) in fp32."""
    _, z = _affine(x, norm, mean, rstd)
    return _activated(z, z, norm)


def norm_forward(x: Tensor, norm: Norm, residual: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return act(IN(x) * weight + bias) + residual in the dtype and layout of x, and mean and rstd [N, C]."""
    mean, rstd = statistics(x, norm.eps)
    y = normalised(x, norm, mean, rstd)
    if residual is not None:
        y = y + residual.float()
    return like(y, x), mean, rstd


def norm_again(x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> Tensor:
    """Recompute act(IN(x) * weight + bias) of the forward, in the dtype and layout of x.

    If mean is empty, there is no norm, and x itself is returned.
    """
    if mean.dim() != 2:
        return x
    return like(normalised(x, norm, mean, rstd), x)


def norm_backward(dy: Tensor, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return dx in the dtype and layout of x, and total [2, N, C].

    ``total`` holds the sums over each image of dz and of dz * x-hat. README.md has the formula.
    """
    x_hat, z = _affine(x, norm, mean, rstd)
    dz = _activated(dy.float(), z, norm)
    pixels = list(range(2, x.dim()))
    total = torch.stack([dz.sum(pixels), (dz * x_hat).sum(pixels)])
    count = x[0, 0].numel() if x.shape[0] else 1
    mean_dz, mean_dzx = _spread(total[0] / count, x), _spread(total[1] / count, x)
    scale = _spread(rstd, x)
    if norm.weight is not None:
        scale = scale * _spread(norm.weight, x)
    return like(scale * (dz - mean_dz - x_hat * mean_dzx), x), total


# --- Borders ------------------------------------------------------------------------------------------------


def reflected(x: Tensor, border: int) -> Tensor:
    """Return x [N, C, H, W] with ``border`` reflected pixels on each side, in channels_last.

    If ``border`` is 0, this is x itself.
    """
    if not border:
        return x
    return channels_last(torch.ops.aten.reflection_pad2d(x, [border] * 4))


def fold_border(dy: Tensor, border: int) -> Tensor:
    """Return the gradient of an image, given ``dy``, the gradient of the same image with a reflected border.

    The result is in channels_last and the dtype of ``dy``. Slices are added in fp32 here, because PyTorch's
    own operator adds with atomics on a GPU, in the dtype of ``dy`` and in no fixed order.
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


# --- Convolutions with P weights, N / P images each ---------------------------------------------------------


def output_padding_of(g: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> int:
    """Return the output_padding with which a transposed convolution of x has an output of the size of g."""
    return g.shape[2] - ((x.shape[2] - 1) * stride - 2 * padding + weight.shape[2])


def convolution(
    y: Tensor, weight: Sequence[Tensor], bias: Sequence[Tensor], conv: Convolution = Convolution()
) -> Tensor:
    """Convolve y [N, C, H, W] with P weights, and return the output in the dtype of y and channels_last.

    Each weight is applied to its own N / P images.
    """
    biases = bias if bias else [None] * len(weight)
    parts = []
    for part, w, b in each_weight(y, weight, biases):
        narrow, bias_of_part = w.to(y.dtype), in_dtype(b, y.dtype)
        parts.append(torch.ops.aten.convolution(part, narrow, bias_of_part, *conv.aten.flat()))
    return channels_last(torch.cat(parts)[: y.shape[0]])


def convolution_backward(
    g: Tensor,
    y: Tensor,
    weight: Sequence[Tensor],
    need_input: bool,
    needs: Sequence[bool],
    dweight: Tensor,
    conv: Convolution = Convolution(),
) -> Tensor | None:
    """Run the backward of ``convolution``: return the gradient of y, and write those of the weights.

    The gradient of y is in channels_last, or None if ``need_input`` is false. The gradients of the weights
    that ``needs`` selects are written to ``dweight``, in order.
    """
    count = len(weight)
    gradients = g.chunk(count) if g.shape[0] else [g] * count
    targets, inputs = iter(dweight), []
    for part, w, need, gradient in each_weight(y, weight, needs, gradients):
        if not need_input and not need:
            continue
        narrow, mask = w.to(y.dtype), [need_input, need, False]
        results = torch.ops.aten.convolution_backward(gradient, part, narrow, None, *conv.aten.flat(), mask)
        inputs.append(results[0])
        if need:
            next(targets).copy_(results[1])
    if not need_input:
        return None
    return channels_last(torch.cat(inputs)[: y.shape[0]])


def sums(g: Tensor, count: int) -> Tensor:
    """Return the gradients of P = ``count`` biases, [P, O] in fp32, from the output gradient g [N, O, H, W].

    They are the sums of g over all pixels of the N / P images that belong to each bias.
    """
    N, O, H, W = g.shape
    return g.reshape(count, N // count, O, H, W).sum((1, 3, 4), dtype=torch.float32)
