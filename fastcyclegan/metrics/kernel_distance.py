"""The kernel distance between two sets of features, KID (Binkowski et al. 2018), in float64.

It is the unbiased estimate of the squared maximum mean discrepancy with the kernel (x'y / D + 1)^3. The mean
and the standard deviation are those over random subsets.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.metrics.library import from_torchmetrics

DEGREE = 3
_ROWS = 1024
"""Rows of a kernel matrix that are computed at a time."""


def subset_size(wanted: int, counts: tuple[int, int]) -> int:
    """Return how many images of each set a subset has: ``wanted``, or half of the smaller set, at least 2.

    Subsets that contain all images would all be the same and have no deviation.
    """
    return max(2, min(wanted, min(counts) // 2))


def kernel_distance(a: Tensor, b: Tensor, subsets: int, size: int, seed: int = 0) -> dict[str, float]:
    """Return the mean and the standard deviation of KID over ``subsets`` subsets of ``size`` images.

    ``a`` is [N, D] and ``b`` [M, D]. The subsets depend only on ``seed`` and the numbers of images.
    """
    poly_mmd = from_torchmetrics("image.kid", "poly_mmd")
    drawn, values = np.random.default_rng(seed), []
    a, b = a.double(), b.double()
    for _ in range(subsets):
        chosen = [torch.from_numpy(drawn.permutation(len(each))[:size]) for each in (a, b)]
        values.append(poly_mmd(a[chosen[0]], b[chosen[1]], DEGREE).item())
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def weighted_distances(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """Return the KID of whole sets in which images count as often as weights say, for R sets of weights.

    ``weights_a`` is [R, N] and ``weights_b`` [R, M]. An image is not compared with copies of itself, which
    would make the sets look less alike than they are.
    """
    a, b, weights_a, weights_b = a.double(), b.double(), weights_a.double(), weights_b.double()
    within = [_mean_within(each, weights) for each, weights in ((a, weights_a), (b, weights_b))]
    total = weights_a.sum(1) * weights_b.sum(1)
    return within[0] + within[1] - 2 * _sums(a, b, weights_a, weights_b) / total


def _mean_within(features: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean [R] of the kernel over all pairs of different images of a set."""
    of_same = (weights.square() * _of_squares(features)).sum(1)
    pairs = weights.sum(1).square() - weights.square().sum(1)
    return (_sums(features, features, weights, weights) - of_same) / pairs


def _sums(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor) -> Tensor:
    """Return the weighted sum [R] of the kernel over all pairs of an image of ``a`` and one of ``b``."""
    total = torch.zeros(len(weights_a), dtype=torch.float64)
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        kernel = (a[rows] @ b.T / a.shape[1] + 1) ** DEGREE
        total += ((weights_a[:, rows] @ kernel) * weights_b).sum(1)
    return total


def _of_squares(features: Tensor) -> Tensor:
    """Return the kernel [N] of each image with itself."""
    return (features.square().sum(1) / features.shape[1] + 1) ** DEGREE
