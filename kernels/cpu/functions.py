"""Call the functions of the C++ library on tensors: norms, borders and convolutions.

The results depend neither on the number of threads nor on the other images of a batch. Sums and statistics
are computed in fp32. Arguments are not checked here, except the layouts of regions; ``operators.py`` does
that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._layout import channels_last, dense, empty_channels_last, like
from .._norm import Norm, empty_statistics
from .forms import form_of, has_forms
from .native import call, function

DTYPES = (torch.float32, torch.bfloat16)
_ACTS = {"none": 0, "relu": 1, "leaky_relu": 2}


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def _vector(t: Tensor | None) -> Tensor | None:
    """Return ``t`` as fp32 numbers that follow one another in memory, or None."""
    if t is None:
        return None
    return t.float().contiguous()


# --- Norms and borders --------------------------------------------------------------------------------------


def norm(
    x: Tensor, norm: Norm, residual: Tensor | None = None, border: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return act(IN(x)) + residual in the layout of x, or in channels_last with a reflected ``border``.

    Also return mean and 1 / sigma [N, C] of x.
    """
    x = channels_last(x) if border else dense(x)
    if residual is not None:
        residual = like(residual, x)
    y = empty_bordered(x, border) if border else torch.empty_like(x)
    mean, rstd = empty_statistics(x)
    if not x.numel():
        return y, mean, rstd
    tensors = (x, residual, y, _vector(norm.weight), _vector(norm.bias), mean, rstd)
    options = (_ACTS[norm.act], norm.slope, norm.eps)
    N, C, H, W, pixels = _sizes(x)
    if _is_channels_last(x):
        call("fcg_norm", _is_half(x), *tensors, False, N, H, W, C, border, *options)
    else:
        call("fcg_norm_lines", _is_half(x), *tensors, N, C, pixels, *options)
    return y, mean, rstd


def norm_again(x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return act(IN(x)) once more, for x [N, C, H, W] in channels_last with its mean and 1 / sigma."""
    y = torch.empty_like(x)
    if x.numel():
        N, C, H, W = x.shape
        tensors = (x, None, y, _vector(norm.weight), _vector(norm.bias), mean, rstd)
        call("fcg_norm", _is_half(x), *tensors, True, N, H, W, C, 0, _ACTS[norm.act], norm.slope, norm.eps)
    return y


def norm_backward(
    g: Tensor, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor, border: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, in its layout, and the sums [2, N, C] of dz and of dz * x-hat over an image.

    x is dense. g is the gradient of the norm's output. If that has a ``border``, both are in channels_last,
    and the border of g has been folded.
    """
    dx, total = torch.empty_like(x), x.new_zeros((2, *x.shape[:2]), dtype=torch.float32)
    if not x.numel():
        return dx, total
    if not border:
        g = like(g, x)
    tensors = (g, x, mean, rstd, _vector(norm.weight), _vector(norm.bias), dx, total)
    options = (_ACTS[norm.act], norm.slope)
    N, C, H, W, pixels = _sizes(x)
    if _is_channels_last(x):
        call("fcg_norm_backward", _is_half(x), *tensors, N, H, W, C, border, *options)
    else:
        call("fcg_norm_backward_lines", _is_half(x), *tensors, N, C, pixels, *options)
    return dx, total


def _is_channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int, int, int]:
    """Return N, C, the rows and columns of x with any number of dimensions, and the pixels of an image."""
    N, C, *sides = x.shape
    pixels = x[0, 0].numel()
    return N, C, pixels // sides[-1], sides[-1], pixels


def empty_bordered(x: Tensor, border: int) -> Tensor:
    """Return an uninitialised tensor like x [N, C, H, W] with a border, in channels_last."""
    N, C, H, W = x.shape
    return empty_channels_last(x, (N, C, H + 2 * border, W + 2 * border))


def pad(x: Tensor, border: int, *, reflect: bool = True, wide: bool = False) -> Tensor:
    """Return x [N, C, H, W] with a reflected or zero border, in channels_last, and in fp32 if ``wide``."""
    x = channels_last(x)
    N, C, H, W = x.shape
    y = empty_bordered(x, border)
    if wide:
        y = y.float()
    if y.numel():
        call("fcg_pad", _is_half(x), wide, x, y, N, H, W, C, border, reflect)
    return y


def fold(g: Tensor, border: int) -> Tensor:
    """Return the gradient of an image from g, that of the image with a reflected border, in channels_last."""
    g = channels_last(g)
    N, C, H, W = g.shape
    dx = empty_channels_last(g, (N, C, H - 2 * border, W - 2 * border))
    if dx.numel():
        call("fcg_fold", _is_half(g), g, None, dx, N, *dx.shape[2:], C, border)
    return dx


def fold_(g: Tensor, border: int) -> None:
    """Fold the reflected border of g in place: add it to the pixels that it shows. It keeps its values."""
    N, C, H, W = g.shape
    if border and g.numel():
        call("fcg_fold", _is_half(g), g, None, None, N, H - 2 * border, W - 2 * border, C, border)


def sum_pixels(g: Tensor) -> Tensor:
    """Return the sums [C] in fp32 of g [N, C, H, W] over all images and pixels."""
    sums = g.new_zeros(g.shape[1], dtype=torch.float32)
    if g.numel():
        g = channels_last(g)
        call("fcg_sum_pixels", _is_half(g), g, sums, g.numel() // g.shape[1], g.shape[1])
    return sums


# --- Norms of regions ---------------------------------------------------------------------------------------


def region_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance [C] in fp32 of a region x [1, C, h, w] of a map.

    x is a view of a channels_last map, in fp32 or bf16, and is read where it is: its pixels are C elements
    apart, and its rows w * C or more. Raises ValueError if x is no such view, or has no pixel.
    """
    row = _row_stride("region_moments: x", x)
    if not x.numel():
        raise ValueError(f"region_moments: x must have at least one pixel, got shape {tuple(x.shape)}")
    _, C, H, W = x.shape
    mean, variance = x.new_empty((2, C), dtype=torch.float32)
    call("fcg_region_moments", _is_half(x), x, row, mean, variance, H, W, C)
    return mean, variance


def normalised_region(
    x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Return act((x - mean) * rstd * weight + bias) + residual for a region, as a new channels_last tensor.

    x [1, C, h, w] is a view as for ``region_moments``, and residual another one of its shape and dtype. mean
    and rstd are [C] or [1, C] in fp32; ``norm.eps`` is not read. The bits are those of ``norm`` for a dense
    copy of x with these statistics. Raises ValueError if x or residual is no such view, or a size differs.
    """
    row, residual_row = _row_stride("normalised_region: x", x), 0
    if residual is not None:
        residual_row = _row_stride("normalised_region: residual", residual)
        if (residual.shape, residual.dtype) != (x.shape, x.dtype):
            wanted, got = (f"{t.dtype} {tuple(t.shape)}" for t in (x, residual))
            raise ValueError(f"normalised_region: residual must be {wanted} like x, got {got}")
    _, C, H, W = x.shape
    for name, statistic in (("mean", mean), ("rstd", rstd)):
        if statistic.numel() != C:
            shape = tuple(statistic.shape)
            raise ValueError(f"normalised_region: {name} must have {C} numbers, got shape {shape}")
    y = empty_channels_last(x, x.shape)
    if y.numel():
        vectors = [_vector(t) for t in (norm.weight, norm.bias, mean, rstd)]
        options = (_ACTS[norm.act], norm.slope)
        call("fcg_norm_region", _is_half(x), x, row, residual, residual_row, y, *vectors, H, W, C, *options)
    return y


def _row_stride(name: str, x: Tensor) -> int:
    """Return how many elements apart the rows of a region x [1, C, h, w] are, or raise ValueError.

    Strides of dimensions of size 1 are not read.
    """
    if x.dim() != 4 or x.shape[0] != 1 or x.dtype not in DTYPES:
        raise ValueError(f"{name} must be [1, C, h, w] in fp32 or bf16, got {x.dtype} {tuple(x.shape)}")
    _, C, H, W = x.shape
    _, channel, row, pixel = x.stride()
    if H <= 1:
        row = W * C
    if (C > 1 and channel != 1) or (W > 1 and pixel != C) or row < W * C:
        layout = f"got shape {tuple(x.shape)} with strides {x.stride()}"
        raise ValueError(f"{name} must be a region of a channels_last map, with pixels {C} apart, {layout}")
    return row


# --- Convolutions -------------------------------------------------------------------------------------------


def convolution(
    kind: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    reflect: bool = False,
    float_out: bool = False,
) -> Tensor:
    """Convolve x, padded by reflection or by zeros, and return the result in channels_last.

    ``kind`` is "winograd" (3x3, stride 1), "wide" (for few input channels) or "few" (for few outputs). weight
    and bias are rounded to the dtype of x. The result has the dtype of x, or is fp32 if ``float_out``.
    """
    x = channels_last(x)
    N, C, H, W = x.shape
    O, _, k, _ = weight.shape
    y = _empty_output(x, (O, k), stride, padding, float_out)
    if not y.numel():
        return y
    offset = _vector(None if bias is None else bias.to(x.dtype))
    if kind == "winograd":
        sizes = (N, H, W, C, O, padding, reflect)
        call("fcg_winograd", _is_half(x), _is_half(y), *_winograd_form(weight, x), offset, y, *sizes)
        return y
    form = form_of(weight, (kind, x.dtype), functools.partial(_prepared, kind=kind, dtype=x.dtype))
    if padding or (kind == "wide" and _is_half(x)):
        x = pad(x, padding, reflect=reflect, wide=kind == "wide")
    size = (N, *x.shape[2:], C, O, k, stride)
    if kind == "wide":
        call("fcg_wide", _is_half(y), x, form, offset, y, *size)
    else:
        call("fcg_few", _is_half(x), _is_half(y), x, form, offset, y, *size)
    return y


def _empty_output(x: Tensor, kernel: Sequence[int], stride: int, padding: int, float_out: bool) -> Tensor:
    N, _, H, W = x.shape
    O, k = kernel
    sides = [(side + 2 * padding - k) // stride + 1 for side in (H, W)]
    return empty_channels_last(x, (N, O, *sides), torch.float32 if float_out else x.dtype)


def input_gradient(kind: str, g: Tensor, weight: Tensor, size: Sequence[int], *, padding: int = 0) -> Tensor:
    """Return the gradient of an image of ``size`` (H, W), in channels_last, from that of its convolution.

    The convolution has stride 1 and pads the image with ``padding`` zeros. ``kind`` is that of its forward.
    For an image with a reflected border, this is the gradient of the image with its border.
    """
    O, C, k, _ = weight.shape
    N = g.shape[0]
    dx = empty_channels_last(g, (N, C, *size))
    if not dx.numel() or not g.numel():
        return dx.zero_()
    g, border = channels_last(g), k - 1 - padding
    if kind == "winograd":
        sizes = (N, *g.shape[2:], O, C, border, False)
        call("fcg_winograd", _is_half(g), _is_half(dx), _TURNED, g, _numbers(weight), None, dx, *sizes)
        return dx
    turned = TURNED[kind]
    form = _prepared(weight.flip(2, 3).transpose(0, 1), turned, g.dtype)
    g = pad(g, border, reflect=False, wide=turned == "wide")
    sizes = (N, *g.shape[2:], O, C, k, 1)
    if turned == "wide":
        call("fcg_wide", _is_half(dx), g, form, None, dx, *sizes)
    else:
        call("fcg_few", _is_half(g), _is_half(dx), g, form, None, dx, *sizes)
    return dx


# The kernel that computes the gradient of the image, where "wide" has stride 1.
TURNED = {"wide": "few", "few": "wide"}


def weight_gradient(
    kind: str,
    g: Tensor,
    x: Tensor,
    k: int,
    *,
    stride: int = 1,
    padding: int = 0,
    reflect: bool = False,
    into: Tensor | None = None,
) -> Tensor:
    """Return the gradient [O, C, k, k] of a weight in fp32 and channels_last.

    g is the gradient of the convolution of x with the given stride and padding. Both have the same dtype.
    ``kind`` is that of the forward, where "few" has stride 1. If ``into`` is given, in fp32 and
    channels_last, the gradient is added to it, and it is returned.
    """
    g, x = channels_last(g), channels_last(x)
    (N, O, *_), C = g.shape, x.shape[1]
    add = into is not None
    dw = empty_channels_last(x, (O, C, k, k), torch.float32) if into is None else into
    if not g.numel():
        return dw if add else dw.zero_()
    if kind == "winograd":
        H, W = x.shape[2:]
        call("fcg_winograd_gradient", _is_half(x), g, x, dw, N, H, W, C, O, padding, reflect, add)
        return dw
    if padding or (kind == "wide" and _is_half(x)):
        x = pad(x, padding, reflect=reflect, wide=kind == "wide")
    if kind == "wide":
        sizes = (N, *g.shape[2:], O, *x.shape[2:], C, k, stride, add)
        call("fcg_wide_gradient", _is_half(g), x, g, dw, *sizes)
        return dw
    g = pad(g, k - 1, reflect=False, wide=True)
    call("fcg_few_gradient", _is_half(x), g, x, dw, N, *x.shape[2:], C, *g.shape[2:], O, k, 1, add)
    return dw


# The forms of weights that Winograd's kernel reads.
_TRANSFORMED, _PLAIN, _TURNED = 0, 1, 2


def _numbers(weight: Tensor) -> Tensor:
    """Return ``weight`` in fp32 and channels_last."""
    return channels_last(weight.detach().float())


def _winograd_form(weight: Tensor, x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the form of the weight that convolves x, x itself, and the weight in this form.

    Where no form is kept, the kernel transforms the weight into memory that is used again by the next call,
    and so stays in a cache.
    """
    if not has_forms():
        return _PLAIN, x, _numbers(weight)
    make = functools.partial(_prepared, kind="winograd", dtype=x.dtype)
    return _TRANSFORMED, x, form_of(weight, ("winograd", x.dtype), make)


def _prepared(weight: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Return ``weight``, rounded to ``dtype``, in the form that the kernel ``kind`` reads."""
    O, C, k, _ = weight.shape
    if kind == "winograd":
        form = torch.empty(function("fcg_winograd_size")(O, C), dtype=torch.float32)
        call("fcg_winograd_weight", dtype == torch.bfloat16, _numbers(weight), form, O, C)
        return form
    form = torch.empty(function(f"fcg_{kind}_size")(O, C, k), dtype=torch.float32)
    call(f"fcg_{kind}_weight", _numbers(weight.to(dtype)), form, O, C, k)
    return form
