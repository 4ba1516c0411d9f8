"""Convolutions of small maps as products of matrices, which PyTorch computes.

A convolution relates a small map [N, A, h, w] and a large one [N, B, H, W] by a weight [A, B, kh, kw]. The
small map is the output of an ordinary convolution and the input of a transposed one, and in both the weight
has this shape. So three functions compute both kinds of convolution and their gradients:

    function         ordinary convolution      transposed convolution
    gather           the output                the gradient of the input
    scatter          the gradient of the input the output
    weight_gradient  that of the weight        that of the weight

If the small map has few pixels, as in the deep levels of a U-Net, nearly all the memory that moves is the
weight's. oneDNN lays the weight out anew on every call, and its gradient too. The products here read and
write it as it is, so they take a half to a tenth of the time. An fp32 weight is not rounded for a bf16 image,
because that would cost another pass over it; the product is then one of fp32 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._convolution import AtenConvolution
from .._layout import channels_last, empty_channels_last, is_channels_last
from .processors import processor

# Measured with 4x4 kernels of 256 to 1024 channels, forward and backward together, in fp32 and bf16: with up
# to 64 pixels the products took 0.1 to 0.9 times as long as oneDNN, and with 256 longer. With smaller weights
# than these, neither was faster for all three functions.
_FEW_PIXELS = 64
_LARGE_WEIGHT = 2**21


def serves(small: Sequence[int], weight: Tensor, conv: AtenConvolution) -> bool:
    """Return whether to compute ``conv`` here. ``small`` is the shape of the small map."""
    if conv.groups != 1 or set(conv.dilation) != {1} or weight.numel() < _LARGE_WEIGHT:
        return False
    if not weight.is_contiguous() and not is_channels_last(weight):
        return False
    return 0 < small[0] * small[2] * small[3] <= _FEW_PIXELS


def gather(large: Tensor, weight: Tensor, conv: AtenConvolution) -> Tensor:
    """Return the small map, in channels_last and the dtype of ``large``."""
    windows, (N, h, w) = _windows(large, weight, conv)
    product = _product(windows, _matrix(weight, windows.dtype).t())
    return channels_last(product.to(large.dtype).view(N, h, w, -1).permute(0, 3, 1, 2))


def scatter(small: Tensor, size: Sequence[int], weight: Tensor, conv: AtenConvolution) -> Tensor:
    """Return the large map, of ``size`` (H, W), in channels_last and the dtype of ``small``."""
    (N, _, h, w), (_, B, kh, kw) = small.shape, weight.shape
    (sy, sx), (py, px), (H, W) = conv.stride, conv.padding, size
    dtype = _dtype(small, weight)
    windows = _product(_rows(small, dtype), _matrix(weight, dtype))
    parts = _split(windows.view(N, h, w, -1), weight)
    # Where windows overlap, they are added up in fp32, and rounded once.
    padded = windows.new_zeros((N, H + 2 * py, W + 2 * px, B), dtype=torch.float32)
    for i in range(kh):
        for j in range(kw):
            padded[:, i : i + sy * h : sy, j : j + sx * w : sx] += parts[..., i, j, :]
    large = empty_channels_last(small, (N, B, H, W))
    return large.copy_(padded[:, py : py + H, px : px + W].permute(0, 3, 1, 2))


def weight_gradient(small: Tensor, large: Tensor, weight: Tensor, conv: AtenConvolution) -> Tensor:
    """Return the gradient of ``weight``, in its layout, and in its dtype or fp32.

    One of ``small`` and ``large`` is the input, and the other one is the output's gradient.
    """
    windows, _ = _windows(large, weight, conv)
    gradient = torch.empty_like(weight, dtype=windows.dtype)
    _product(_rows(small, windows.dtype).t(), windows, out=_matrix(gradient, windows.dtype))
    return gradient


def add_weight_gradient(
    into: Tensor, small: Tensor, large: Tensor, weight: Tensor, conv: AtenConvolution
) -> None:
    """Add ``weight_gradient`` to ``into`` in place, without a pass of its own if that is like the weight."""
    if into.stride() != weight.stride() or into.dtype != _dtype(small, weight):
        into.add_(weight_gradient(small, large, weight, conv))
        return
    windows, _ = _windows(large, weight, conv)
    with torch.autocast("cpu", enabled=False):
        _matrix(into, into.dtype).addmm_(_rows(small, into.dtype).t(), windows)


def _dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the products: fp32, unless x and the weight are both bf16."""
    if weight.dtype == x.dtype and processor() != "avx2":
        return x.dtype
    return torch.float32


def _product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    # Autocast, which may be on in the forward, would round fp32 numbers.
    with torch.autocast("cpu", enabled=False):
        return torch.mm(a, b, out=out)


def _rows(small: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [N, A, h, w] as [N h w, A]."""
    return small.permute(0, 2, 3, 1).reshape(-1, small.shape[1]).to(dtype)


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight as [A, kh kw B] or [A, B kh kw], in the order that it has in memory."""
    ordered = weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)
    return ordered.view(weight.shape[0], -1).to(dtype)


def _split(windows: Tensor, weight: Tensor) -> Tensor:
    """Return [N, h, w, ...], whose last dimension is ordered as ``_matrix``, as [N, h, w, kh, kw, B]."""
    _, B, kh, kw = weight.shape
    if weight.is_contiguous():
        return windows.unflatten(3, (B, kh, kw)).movedim(3, 5)
    return windows.unflatten(3, (kh, kw, B))


def _windows(large: Tensor, weight: Tensor, conv: AtenConvolution) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the windows of the large map as [N h w, ...] in the order of ``_matrix``, and (N, h, w)."""
    (py, px), (sy, sx) = conv.padding, conv.stride
    with torch.autocast("cpu", enabled=False):
        padded = F.pad(large, (px, px, py, py))
    views = padded.unfold(2, weight.shape[2], sy).unfold(3, weight.shape[3], sx)
    N, _, h, w = views.shape[:4]
    order = (0, 2, 3, 1, 4, 5) if weight.is_contiguous() else (0, 2, 3, 4, 5, 1)
    return views.permute(order).reshape(N * h * w, -1).to(_dtype(large, weight)), (N, h, w)
