"""The Frechet distance against closed forms, and against its definition with scipy's matrix square root."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.metrics.frechet import frechet_distance

Matrix = NDArray[np.float64]
EPS = np.finfo(np.float64).eps


def features(count: int, width: int, rank: int, seed: int) -> Tensor:
    """Return random float32 features [count, width] of a covariance of at most ``rank``, far from 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, width)) / math.sqrt(rank)
    return torch.from_numpy((values + rng.normal(size=width)).astype(np.float32))


def rounding(*sets: Tensor) -> float:
    """Return a bound for the error of a distance in float64.

    Sums of n products have a relative error of at most n eps, so each product of factors is off by at most
    n eps |A| |B| in the Frobenius norm, and the sum of its singular values by sqrt(D) times that. Means add
    as much, and 4 stands for the number of such steps.
    """
    count, width = max(map(len, sets)), sets[0].shape[1]
    scale = max(each.double().square().sum(1).mean().item() for each in sets)
    return 4 * math.sqrt(width) * max(count, width) * EPS * scale


def by_scipy(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return the distance by its definition, and a bound for its error.

    The eigenvalues of S1 S2 are off by up to D eps |S1 S2|, and the roots of those that should be 0 by the
    square root of that, D times.
    """
    linalg = pytest.importorskip("scipy.linalg")
    x, y = a.double().numpy(), b.double().numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(s1 @ s2)
    mean = ((x.mean(0) - y.mean(0)) ** 2).sum()
    width = x.shape[1]
    bound = 2 * width * math.sqrt(width * EPS * np.linalg.norm(s1 @ s2, 2))
    return mean + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real, bound


@pytest.mark.parametrize(
    ("counts", "width", "rank"),
    [
        ((200, 150), 16, 16),  # more images than features
        ((200, 150), 16, 5),  # of a covariance without full rank
        ((50, 50), 64, 64),  # fewer images than features
        ((50, 80), 64, 20),
        ((2, 3), 8, 8),  # the fewest images
    ],
)
def test_distances_are_those_of_the_definition(counts: tuple[int, int], width: int, rank: int) -> None:
    a, b = features(counts[0], width, rank, 0), features(counts[1], width, rank, 1)
    expected, bound = by_scipy(a, b)
    assert abs(frechet_distance(a, b) - expected) <= bound + rounding(a, b)
    assert expected > 100 * bound  # otherwise, the comparison shows nothing


def with_deviations(deviations: Matrix, mean: Matrix, rotation: Matrix) -> Tensor:
    """Return features whose covariance has exactly these ``deviations`` along the columns of ``rotation``."""
    width = len(deviations)
    identity = np.eye(width) * math.sqrt(width)
    rows = np.concatenate([identity, -identity]) * math.sqrt((2 * width - 1) / (2 * width))
    return torch.from_numpy(rows * deviations @ rotation.T + mean)


@pytest.mark.parametrize("zeros", [0, 4, 9])
def test_distances_of_known_covariances(zeros: int) -> None:
    """Those of two distributions with the same axes: |m1 - m2|^2 plus the sum of (s1 - s2)^2.

    It is this only if covariances are divided by the number of images less one.
    """
    rng = np.random.default_rng(zeros)
    s1, s2 = rng.uniform(0.5, 2, 10), rng.uniform(0.5, 2, 10)
    s1[:zeros] = 0
    m1, m2 = rng.normal(size=10), rng.normal(size=10)
    rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    a, b = with_deviations(s1, m1, rotation), with_deviations(s2, m2, rotation)
    np.testing.assert_allclose(np.cov(a.numpy(), rowvar=False), rotation * s1**2 @ rotation.T, atol=1e-12)
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert abs(frechet_distance(a, b) - expected) <= rounding(a, b)


@pytest.mark.parametrize(("count", "width"), [(200, 16), (50, 64), (50, 2048)])
def test_equal_sets_have_no_distance(count: int, width: int) -> None:
    a = features(count, width, min(count, width), 0)
    trace = a.double().var(0).sum().item()
    found = frechet_distance(a, a.flip(0))  # in another order, which rounds otherwise
    assert 0 <= found <= min(1e-6 * trace, rounding(a))


@pytest.mark.parametrize(("count", "width"), [(40, 8), (12, 30)])
def test_weights_count_images_several_times(count: int, width: int) -> None:
    a, b = features(count, width, width, 0), features(count + 5, width, width, 1)
    rng = np.random.default_rng(0)
    weights = [torch.from_numpy(rng.integers(0, 4, len(each))) for each in (a, b)]
    repeated = [each.repeat_interleave(many, 0) for each, many in zip((a, b), weights, strict=True)]
    found, expected = frechet_distance(a, b, *weights), frechet_distance(*repeated)
    assert abs(found - expected) <= 2 * rounding(*repeated)
    assert abs(found - frechet_distance(a, b)) > 100 * rounding(a, b)


def test_a_shift_and_a_scale() -> None:
    """Features times s have s^2 times the distance; those moved by v, |v|^2."""
    a, b = features(60, 6, 6, 0), features(70, 6, 6, 1)
    plain = frechet_distance(a, b)
    assert abs(frechet_distance(4 * a, 4 * b) - 16 * plain) <= rounding(4 * a, 4 * b)
    moved = a.double() + torch.arange(6)
    assert abs(frechet_distance(a, moved) - 55) <= rounding(a, moved)


def test_huge_features() -> None:
    """Squares of the largest float32 numbers are far from the largest of float64."""
    a, b = features(20, 5, 5, 0) * 1e37, features(20, 5, 5, 1) * 1e37
    expected = frechet_distance(a / 1e37, b / 1e37)
    assert frechet_distance(a, b) / 1e74 == pytest.approx(expected, rel=1e-6)  # float32 rounds the features


def test_what_is_no_number_has_no_distance() -> None:
    a = features(20, 5, 5, 0)
    a[3, 2] = torch.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        frechet_distance(a, features(20, 5, 5, 1))
