"""Call the functions of the C++ library on tensors: norms, borders and convolutions.

The results depend neither on the number of threads nor on the other images of a batch. Sums and statistics
are computed in fp32. Arguments are not checked here; ``operators.py`` does that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .._layout import channels_last, dense, empty_channels_last, like
from .._norm import Norm
from .forms import form_of
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


def norm(x: Tensor, norm: Norm, residual: Tensor | None = None, border: int = 0) -> Tensor:
    """Return act(IN(x)) + residual in the layout of x, or in channels_last with a reflected ``border``."""
    x = channels_last(x) if border else dense(x)
    if residual is not None:
        residual = like(residual, x)
    N, C, *sides = x.shape
    y = empty_bordered(x, border) if border else torch.empty_like(x)
    if not x.numel():
        return y
    tensors = (_is_half(x), x, residual, y, _vector(norm.weight), _vector(norm.bias))
    options = (_ACTS[norm.act], norm.slope, norm.eps)
    pixels = x[0, 0].numel()
    if x.movedim(1, -1).is_contiguous():
        call("fcg_norm", *tensors, N, pixels // sides[-1], sides[-1], C, border, *options)
    else:
        call("fcg_norm_lines", *tensors, N, C, pixels, *options)
    return y


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
    form = form_of(weight, (kind, x.dtype), functools.partial(_prepared, kind=kind, dtype=x.dtype))
    offset = _vector(None if bias is None else bias.to(x.dtype))
    if kind == "winograd":
        call("fcg_winograd", _is_half(x), _is_half(y), x, form, offset, y, N, H, W, C, O, padding, reflect)
        return y
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


def _prepared(weight: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Return ``weight``, rounded to ``dtype``, in the form that the kernel ``kind`` reads."""
    numbers = channels_last(weight.to(dtype).float())
    O, C, k, _ = weight.shape
    form = torch.empty(function(f"fcg_{kind}_size")(O, C, k), dtype=torch.float32)
    call(f"fcg_{kind}_weight", numbers, form, O, C, k)
    return form
