"""Bootstrap intervals: of means against the closed form, and of distances of two sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcyclegan.metrics.bootstrap import draw_counts, interval, pair_intervals, set_intervals
from fastcyclegan.metrics.frechet import frechet_distance
from fastcyclegan.metrics.kernel_distance import weighted_distances


def test_as_many_images_are_drawn_as_there_are() -> None:
    counts = draw_counts(7, 500, 0)
    assert counts.shape == (500, 7)
    assert (counts.sum(1) == 7).all()
    assert ((counts > 0).sum(1) >= 2).all()
    # Each is drawn once on average, with the variance 1 - 1/7: the mean of 500 is within 4 standard errors.
    assert (np.abs(counts.mean(0) - 1) < 4 * math.sqrt(6 / 7 / 500)).all()
    assert np.array_equal(counts, draw_counts(7, 500, 0))
    assert not np.array_equal(counts, draw_counts(7, 500, 1))


def test_the_fewest_images() -> None:
    """Two images are both drawn, without which there is no variance; one image is the only choice."""
    assert draw_counts(2, 20, 0).tolist() == [[1, 1]] * 20
    assert draw_counts(1, 3, 0).tolist() == [[1]] * 3


def test_the_interval_of_a_mean_is_that_of_the_closed_form() -> None:
    """The mean of n values has the standard error s/sqrt(n), and 95% lie within 1.96 of these.

    A quantile q of R draws of a normal distribution has the standard error sqrt(q (1 - q) / R) / density,
    here 2.7 / sqrt(R) standard errors of the mean. 5 of those allow for the skewness of 400 values.
    """
    values = np.random.default_rng(0).normal(0.4, 0.05, 400)
    draws = 2000
    low, high = pair_intervals({"l1": values.tolist()}, draws)["l1"]
    error = values.std() / math.sqrt(len(values))
    sampling = 5 * 2.7 / math.sqrt(draws) * error
    assert abs(low - (values.mean() - 1.96 * error)) < sampling
    assert abs(high - (values.mean() + 1.96 * error)) < sampling


def test_an_interval_is_about_the_value() -> None:
    """The distance of drawn images from their mean counts, not that mean, which is biased."""
    resampled = (100 + np.linspace(-1, 1, 2001)).tolist()
    low, high = interval("kid", 3, resampled)
    assert (low, high) == pytest.approx((3 - 0.95, 3 + 0.95))


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("fid", 0.5, [0, 1.45]), ("l1", 0.5, [0, 1]), ("ssim", 0.5, [-0.45, 1]), ("kid", 0.5, [-0.45, 1.45])
])  # fmt: skip
def test_intervals_stay_within_the_bounds_of_a_metric(name: str, value: float, expected: list[float]) -> None:
    found = interval(name, value, (100 + np.linspace(-1, 1, 2001)).tolist())
    assert found == pytest.approx(expected)


def sets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(30, 5, generator=generator), torch.randn(25, 5, generator=generator) + 0.4


def no_progress(done: int) -> None:
    pass


def test_intervals_of_distances_contain_the_values_and_are_deterministic() -> None:
    fake, real = sets()
    ones = torch.ones(1, 30), torch.ones(1, 25)
    values = {"fid": frechet_distance(fake, real), "kid": weighted_distances(fake, real, *ones).item()}
    done: list[int] = []
    found = set_intervals(fake, real, values, 40, done.append)
    assert done == list(range(1, 41))
    for name, value in values.items():
        low, high = found[name]
        assert low < value < high
    torch.manual_seed(5)
    np.random.seed(5)
    assert set_intervals(fake, real, values, 40, no_progress) == found


def test_both_sets_are_drawn_anew() -> None:
    """Otherwise, the interval would be narrower: here all deviations come from one of the sets."""
    fake, real = sets()
    for a, b in ((fake, real[:1].repeat(25, 1)), (fake[:1].repeat(30, 1), real)):
        low, high = set_intervals(a, b, {"fid": frechet_distance(a, b)}, 20, no_progress)["fid"]
        assert high - low > 1e-6  # more than rounding


def test_sets_of_copies_have_no_deviation() -> None:
    a = torch.ones(6, 4)
    assert set_intervals(a, a, {"fid": 0, "kid": 0}, 10, no_progress) == {"fid": [0, 0], "kid": [0, 0]}


def test_only_metrics_with_values_have_intervals() -> None:
    fake, real = sets()
    assert set(set_intervals(fake, real, {"kid": 0.1}, 3, no_progress)) == {"kid"}
    assert set_intervals(fake, real, {}, 3, no_progress) == {}
    assert pair_intervals({}, 3) == {}
    assert pair_intervals({"psnr": [20.0]}, 3) == {}
