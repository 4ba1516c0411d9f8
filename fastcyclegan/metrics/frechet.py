"""The Frechet distance between two sets of features (Heusel et al. 2017), in float64.

FID is the squared distance between two normal distributions, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).
With factors S1 = A A' and S2 = B B', the trace of the square root is the sum of the singular values of A' B,
which are the square roots of the eigenvalues of the symmetric product A' S2 A. Unlike the eigenvalues of
S1 S2 (torchmetrics) and scipy's sqrtm, these are accurate for covariances without full rank, that is for
fewer images than features: equal sets have a distance of 0 to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(
    a: Tensor, b: Tensor, weights_a: Tensor | None = None, weights_b: Tensor | None = None
) -> float:
    """Return the distance between the features ``a`` [N, D] and ``b`` [M, D] of two sets of images.

    Covariances are divided by the number of images less one. ``weights_a`` [N] and ``weights_b`` [M] are how
    often each image counts, by default once.
    """
    mean_a, factor_a = _moments(a, weights_a)
    mean_b, factor_b = _moments(b, weights_b)
    trace = factor_a.square().sum() + factor_b.square().sum()
    overlap = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    distance = (mean_a - mean_b).square().sum() + trace - 2 * overlap
    return distance.clamp(min=0).item()  # rounding can leave a little less than 0


def _moments(features: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and a factor [D, K] of the covariance, whose K is at most D."""
    values = features.double()
    counts = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    total = counts.sum()
    mean = counts @ values / total
    factor = ((values - mean) * (counts / (total - 1)).sqrt()[:, None]).T
    if factor.shape[1] > factor.shape[0]:
        # The transposed triangle of a QR decomposition is a factor of the same covariance, without the loss
        # of digits of forming that.
        factor = torch.linalg.qr(factor.T, mode="r").R.T
    return mean, factor
