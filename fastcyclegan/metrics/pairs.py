"""Metrics of pairs of images: L1, PSNR and SSIM, each computed in float64 from 8-bit values.

SSIM is that of Wang et al. (2004): averaged where its window lies inside the image, as scikit-image does, but
torchmetrics does not.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.metrics.library import from_torchmetrics

WINDOW, SIGMA = 11, 1.5
"""Side of the Gaussian window of SSIM in pixels, and its standard deviation."""
_PEAK = 255.0
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2

Pixels = NDArray[np.uint8]


def pair_metrics(fake: Pixels, real: Pixels, names: Collection[str]) -> dict[str, float]:
    """Return those of l1, psnr and ssim that are in ``names``, for two images [H, W, C] of the same shape.

    SSIM needs images of at least 11 x 11 pixels.
    """
    found: dict[str, float] = {}
    if "l1" in names:
        mean_absolute_error = from_torchmetrics("functional.regression", "mean_absolute_error")
        found["l1"] = mean_absolute_error(*_values(fake, real)).item() / _PEAK
    if "psnr" in names:
        found["psnr"] = _psnr(fake, real)
    if "ssim" in names:
        found["ssim"] = _ssim(fake, real)
    return found


def _values(fake: Pixels, real: Pixels) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(fake.astype(np.float64)), torch.from_numpy(real.astype(np.float64))


def _psnr(fake: Pixels, real: Pixels) -> float:
    """Return 10 log10(255^2 / MSE) in dB.

    Equal images would have infinitely many. They count as if one value differed by 1, which is more than any
    other pair of this size can have.
    """
    mean_squared_error = from_torchmetrics("functional.regression", "mean_squared_error")
    least = 1 / fake.size
    return 10 * math.log10(_PEAK**2 / max(least, mean_squared_error(*_values(fake, real)).item()))


def _ssim(fake: Pixels, real: Pixels) -> float:
    """Return the mean of SSIM over the places where the window lies inside the images.

    torchmetrics needs half a second for a pair of 256x256 pixels in float64, because it does not separate the
    window into rows and columns, and in float32 its result is wrong by 2e-4 for bright plain images.
    """
    a, b = (image.transpose(2, 0, 1).astype(np.float64) for image in (fake, real))
    mean_a, mean_b, square_a, square_b, product = map(_windowed, (a, b, a * a, b * b, a * b))
    variances = square_a - mean_a**2 + square_b - mean_b**2
    structure = (2 * (product - mean_a * mean_b) + _C2) / (variances + _C2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return float((luminance * structure).mean())


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of ``values`` [C, H, W] in the window around each place where it lies inside."""
    kernel = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    kernel /= kernel.sum()
    height, width = (side - WINDOW + 1 for side in values.shape[1:])
    rows = sum(weight * values[:, n : n + height] for n, weight in enumerate(kernel))
    return sum(weight * rows[:, :, n : n + width] for n, weight in enumerate(kernel))
