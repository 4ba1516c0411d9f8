"""Bootstrap intervals: how much a metric would vary with other images of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.metrics.frechet import frechet_distance
from fastcyclegan.metrics.kernel_distance import weighted_distances
from fastcyclegan.metrics.names import METRICS

LEVEL = 0.95
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def draw_counts(images: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image is drawn, [draws, images], if as many as there are are drawn each time.

    At least two different images are drawn each time, without which there is no variance.
    """
    drawn, counts = np.random.default_rng(seed), np.zeros((draws, images), np.int64)
    for row in counts:
        while (row > 0).sum() < min(2, images):
            row[:] = np.bincount(drawn.integers(0, images, images), minlength=images)
    return counts


def interval(name: str, value: float, resampled: Sequence[float]) -> list[float]:
    """Return the ends of the interval around ``value``: the quantiles of ``resampled``, about their mean.

    Values of drawn images are on average not that of the images: a set with repeated images is farther from
    any other. So the interval is that of the deviations from their mean.
    """
    metric, deviations = METRICS[name], np.quantile(resampled, _ENDS) - np.mean(resampled)
    return [float(min(max(value + end, metric.low), metric.high)) for end in deviations]


def set_intervals(
    fake: Tensor, real: Tensor, values: Mapping[str, float], draws: int, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Return the intervals of those of fid and kid that are in ``values``.

    ``fake`` is [N, D] and ``real`` [M, D]. ``progress`` is called with the number of completed draws.
    """
    weights = [
        torch.from_numpy(draw_counts(len(each), draws, seed)) for seed, each in enumerate((fake, real))
    ]
    found = {}
    if "kid" in values:
        found["kid"] = interval("kid", values["kid"], weighted_distances(fake, real, *weights).tolist())
    if "fid" in values:
        distances = []
        for number, (of_fake, of_real) in enumerate(zip(*weights, strict=True), start=1):
            distances.append(frechet_distance(fake, real, of_fake, of_real))
            progress(number)
        found["fid"] = interval("fid", values["fid"], distances)
    return found


def pair_intervals(values: Mapping[str, Sequence[float]], draws: int) -> dict[str, list[float]]:
    """Return the intervals of the means of ``values``, which are those of each pair, by metric."""
    found = {}
    for name, of_pairs in values.items():
        if len(of_pairs) < 2:  # one pair tells nothing of others
            continue
        counts = draw_counts(len(of_pairs), draws, 2)
        means = counts @ np.asarray(of_pairs) / len(of_pairs)
        found[name] = interval(name, float(np.mean(of_pairs)), means.tolist())
    return found
