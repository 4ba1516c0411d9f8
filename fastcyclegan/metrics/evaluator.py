"""Compute metrics of images that may be made one at a time, with networks that stay in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.bootstrap import pair_intervals, set_intervals
from fastcyclegan.metrics.features import Features, load_features
from fastcyclegan.metrics.frechet import frechet_distance
from fastcyclegan.metrics.images import ImageFiles, Pixels, as_rgb
from fastcyclegan.metrics.kernel_distance import kernel_distance, subset_size
from fastcyclegan.metrics.library import require_torchmetrics
from fastcyclegan.metrics.load_lpips import load_lpips, lpips_of
from fastcyclegan.metrics.lpips import Lpips
from fastcyclegan.metrics.names import METRICS, OF_PAIRS, OF_SETS, mean_of
from fastcyclegan.metrics.pairs import SIGMA, WINDOW, pair_metrics
from fastcyclegan.metrics.protocol import versions
from fastcyclegan.metrics.statistics_cache import cache_file, cached_features
from fastcyclegan.settings.metrics import MetricConfig

Log = Callable[[str], None]
SHOWN = 4
"""Number of best pairs and of worst pairs that are kept to be shown."""


@dataclass(frozen=True)
class Fake:
    """An image [H, W, C] to measure. ``partner`` is the index of the real image it should equal, or None.

    ``source`` is the image that it was translated from, if that is known.
    """

    name: str
    pixels: Pixels
    partner: int | None = None
    source: Pixels | None = None


@dataclass(frozen=True)
class ShownPair:
    """A pair to show: its metrics, and its images [H, W, 3] by what they are."""

    name: str
    metrics: dict[str, float]
    images: dict[str, Pixels]


@dataclass
class Result:
    """The metrics of a set of images, and what they depend on.

    ``metrics`` maps names to numbers; KID is {"mean": x, "std": x}. ``best`` and ``worst`` are the pairs
    with the best and the worst values of the metric ``judged_by``. ``other`` are metrics of the same protocol
    to show the differences from.
    """

    protocol: dict[str, Any]
    images: dict[str, int]
    metrics: dict[str, Any]
    intervals: dict[str, list[float]] = field(default_factory=dict)
    judged_by: str = ""
    best: list[ShownPair] = field(default_factory=list)
    worst: list[ShownPair] = field(default_factory=list)
    other: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values."""
        return {
            "protocol": self.protocol,
            "images": self.images,
            "metrics": self.metrics,
            "intervals": self.intervals,
        }


class Evaluator:
    """Computes ``metrics``, some of the names of ``names.METRICS``, as ``config`` describes.

    Its networks, and the features of real images, are loaded when it is first used and kept. ``log`` is
    called with lines for the user. Raises UserError if a network cannot be downloaded or read.
    """

    def __init__(
        self,
        config: MetricConfig,
        metrics: Sequence[str],
        device: torch.device,
        log: Log = lambda line: None,
    ) -> None:
        require_torchmetrics()
        self.config, self.device, self.log = config, device, log
        self.use(metrics)
        self.features: Features | None = None
        self.lpips: Lpips | None = None
        self._real: dict[str, Tensor] = {}

    def use(self, metrics: Sequence[str]) -> None:
        """Compute ``metrics`` from now on, in the order of the table of metrics."""
        self.metrics = tuple(name for name in METRICS if name in metrics)
        self.of_sets = [name for name in self.metrics if name in OF_SETS]
        self.of_pairs = [name for name in self.metrics if name in OF_PAIRS]

    def load(self) -> None:
        """Load the networks, if that was not done yet."""
        if self.of_sets and self.features is None:
            self.features = load_features(self.config, self.device, self.log)
        if "lpips" in self.metrics and self.lpips is None:
            self.lpips = load_lpips(self.config, self.device, self.log)

    def real_features(self, reals: ImageFiles) -> Tensor:
        """Return the features of ``reals``, from memory or from the cache on disk if they are there."""
        self.load()
        features, digest = self.features, reals.digest
        assert features is not None
        if digest not in self._real:
            images = map(reals.read, range(len(reals)))
            file = cache_file(digest, features.protocol)
            self._real[digest] = cached_features(file, len(reals), lambda: features.of(images), self.log)
        return self._real[digest]

    def evaluate(self, fakes: Iterable[Fake], reals: ImageFiles, resample: int = 0) -> Result:
        """Return the metrics of ``fakes`` against ``reals``.

        The fakes are taken one after the other, and none is kept but those to show. With ``resample``, that
        many bootstrap samples give an interval for each metric.
        """
        self.load()
        pairs = _Pairs(self, reals)
        images = pairs.measured(fakes)
        metrics: dict[str, Any] = {}
        if self.of_sets:
            assert self.features is not None
            real = self.real_features(reals)
            fake = self.features.of(images)
            self._require_as_many(fake, real)
            metrics = self._of_sets(fake, real)
        else:
            for _ in images:
                pass
        of_pairs = {name: values for name, values in pairs.values.items() if values}
        metrics |= {name: float(np.mean(values)) for name, values in of_pairs.items()}
        metrics = {name: metrics[name] for name in self.metrics if name in metrics}
        result = Result(self.protocol(pairs.counts(), reals), pairs.counts(), metrics)
        result.judged_by, result.best, result.worst = pairs.extremes()
        if resample:
            intervals = pair_intervals(of_pairs, resample)
            if self.of_sets:
                intervals |= self._set_intervals(fake, real, metrics, resample)
            result.intervals = {name: intervals[name] for name in metrics if name in intervals}
        return result

    def _require_as_many(self, fake: Tensor, real: Tensor) -> None:
        if fake.shape[1] != real.shape[1]:
            assert self.features is not None
            raise UserError(
                f"{self.features.name}: returns {fake.shape[1]} features for the images to measure and"
                f" {real.shape[1]} for the real ones; give --features_size"
            )

    def _of_sets(self, fake: Tensor, real: Tensor) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "fid" in self.metrics:
            found["fid"] = frechet_distance(fake, real)
        if "kid" in self.metrics:
            size = subset_size(self.config.kid_subset_size, (len(fake), len(real)))
            found["kid"] = kernel_distance(fake, real, self.config.kid_subsets, size)
        return found

    def _set_intervals(
        self, fake: Tensor, real: Tensor, metrics: dict[str, Any], resample: int
    ) -> dict[str, list[float]]:
        values = {name: mean_of(metrics[name]) for name in self.of_sets}

        def progress(done: int) -> None:
            if done % 10 == 0:
                self.log(f"bootstrap: {done} of {resample} samples")

        return set_intervals(fake, real, values, resample, progress)

    def protocol(self, counts: Mapping[str, int], reals: ImageFiles) -> dict[str, Any]:
        """Return what numbers depend on besides the images that are measured.

        ``counts`` are the numbers of images, fake and real, and that of pairs.
        """
        protocol: dict[str, Any] = {
            "images": {**counts, "real_sha256": reals.digest, "real_jpeg": reals.kinds["jpeg"]}
        }
        if self.features is not None:
            protocol["features"] = self.features.protocol
        if "kid" in self.metrics:
            size = subset_size(self.config.kid_subset_size, (counts["fake"], counts["real"]))
            protocol["kid"] = {"subsets": self.config.kid_subsets, "subset_size": size}
        if "ssim" in self.metrics:
            protocol["ssim"] = {"window": WINDOW, "sigma": SIGMA, "range": 255}
        if self.lpips is not None:
            protocol["lpips"] = self.lpips.protocol
        protocol["precision"] = {"networks": "fp32", "distances": "fp64"}
        protocol["versions"] = versions()
        return protocol


class _Pairs:
    """Measures the pairs among images that pass by, and counts the images."""

    def __init__(self, evaluator: Evaluator, reals: ImageFiles) -> None:
        self.evaluator, self.reals = evaluator, reals
        self.values: dict[str, list[float]] = {name: [] for name in evaluator.of_pairs}
        self.fakes = 0
        self.judge = next((name for name in ("lpips", "l1", "ssim", "psnr") if name in self.values), "")
        self._best: list[tuple[float, int, ShownPair]] = []
        self._worst: list[tuple[float, int, ShownPair]] = []

    def measured(self, fakes: Iterable[Fake]) -> Iterator[Pixels]:
        """Yield the images of ``fakes`` [H, W, 3] after measuring those that have a partner."""
        for fake in fakes:
            self.fakes += 1
            pixels = as_rgb(fake.pixels)
            if fake.partner is not None and self.values:
                self._measure(fake, pixels, self.reals.read(fake.partner))
            yield pixels

    def _measure(self, fake: Fake, pixels: Pixels, real: Pixels) -> None:
        if pixels.shape != real.shape:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (pixels, real))
            raise UserError(f"{fake.name}: the images of a pair must have the same size, got {sizes} pixels")
        found = pair_metrics(pixels, real, self.values)
        if self.evaluator.lpips is not None:
            found["lpips"] = lpips_of(self.evaluator.lpips, pixels, real)
        for name, values in self.values.items():
            values.append(found[name])
        images = {"translation": pixels, "real": real}
        if fake.source is not None:
            images = {"source": as_rgb(fake.source), **images}
        self._keep(ShownPair(fake.name, found, images))

    def _keep(self, pair: ShownPair) -> None:
        """Keep ``pair`` if it is one of the best or one of the worst."""
        goodness = pair.metrics[self.judge]
        if METRICS[self.judge].lower_is_better:
            goodness = -goodness
        for heap, key in ((self._best, goodness), (self._worst, -goodness)):
            heapq.heappush(heap, (key, -self.fakes, pair))  # of equal pairs, the first is kept
            if len(heap) > SHOWN:
                heapq.heappop(heap)

    def counts(self) -> dict[str, int]:
        pairs = max(map(len, self.values.values()), default=0)
        return {"fake": self.fakes, "real": len(self.reals), "pairs": pairs}

    def extremes(self) -> tuple[str, list[ShownPair], list[ShownPair]]:
        """Return the metric that judges pairs, the best pairs and the worst ones, each in order.

        With few pairs, one is only shown once.
        """
        best, worst = sorted(self._best, reverse=True), sorted(self._worst, reverse=True)
        shown = {number for _, number, _ in best}
        others = [pair for _, number, pair in worst if number not in shown]
        return self.judge, [pair for _, _, pair in best], others
