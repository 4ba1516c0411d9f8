"""The metrics: what each is called, its range, and which values are better.

The names are frozen: files contain them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastcyclegan.errors import UserError


@dataclass(frozen=True)
class Metric:
    """A metric. ``of_pairs`` compares pairs of images; the others compare two sets.

    ``low`` and ``high`` are the bounds of its values, and ``lower_is_better`` tells which of them is good.
    """

    title: str
    meaning: str
    low: float
    high: float
    lower_is_better: bool = True
    of_pairs: bool = True

    @property
    def needs_features(self) -> bool:
        """Whether it compares the features of a network."""
        return not self.of_pairs

    def is_better(self, value: float, than: float) -> bool:
        return value < than if self.lower_is_better else value > than


METRICS: Mapping[str, Metric] = {
    "fid": Metric("FID", "Frechet distance between the features of two sets", 0, math.inf, of_pairs=False),
    "kid": Metric(
        "KID",
        "squared maximum mean discrepancy of the features, cubic kernel; it can be below 0",
        -math.inf,
        math.inf,
        of_pairs=False,
    ),
    "l1": Metric("L1", "mean absolute difference of 8-bit values, divided by 255", 0, 1),
    "psnr": Metric("PSNR", "peak signal-to-noise ratio in dB, mean over pairs", 0, math.inf, False),
    "ssim": Metric("SSIM", "structural similarity, mean over pairs", -1, 1, False),
    "lpips": Metric("LPIPS", "learned perceptual distance v0.1, mean over pairs", 0, math.inf),
}
OF_SETS = tuple(name for name, metric in METRICS.items() if not metric.of_pairs)
OF_PAIRS = tuple(name for name, metric in METRICS.items() if metric.of_pairs)


def require_known(names: Sequence[str]) -> None:
    """Raise UserError if one of ``names`` is not that of a metric."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")


def mean_of(value: Any) -> float:
    """Return the number of a metric's value, which for KID is {"mean": x, "std": x}."""
    return float(value["mean"] if isinstance(value, Mapping) else value)


def shown(value: Any) -> str:
    """Return the value of a metric as text."""
    if isinstance(value, Mapping):
        return f"{value['mean']:.5g} (std {value['std']:.2g})"
    return f"{value:.5g}"
