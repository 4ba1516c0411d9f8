"""Determine sample i of an epoch from nothing but (seed, epoch, i).

A sample consists of one image of A and one of B, the crop and flip of each, and the random numbers for the
replay pools, the gradient penalty and the discriminators' augmentation. Loaders, workers and devices draw no
random numbers themselves. Every loader therefore sees the same samples, and the position in a run is a single
integer: the number of completed iterations.

The random numbers are raw Philox words from numpy. Their bit streams are stable across numpy versions, unlike
its distributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _SAMPLE, _AUGMENT = 0, 1, 2
# What an iteration shows the discriminators, and how many random numbers augment an image of it.
AUGMENTED = ("fake_B", "fake_A", "real_B", "pooled_B", "real_A", "pooled_A")
AUGMENT_NUMBERS = 7


def uniforms(count: int, *key: int) -> NDArray[np.float64]:
    """Return ``count`` random numbers in [0, 1) that depend only on the non-negative integers in ``key``."""
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


@dataclass(frozen=True)
class View:
    """The crop and flip of one image.

    ``x`` and ``y``, in [0, 1), are the position of the crop as a fraction of the available space.
    """

    x: float
    y: float
    flip: bool


@dataclass(frozen=True)
class Sample:
    """One unpaired sample.

    ``draw_A`` and ``draw_B`` are the random numbers (swap, place) for the pools of fake A and fake B.
    ``mix_A`` and ``mix_B`` are those of the wgangp gradient penalty. ``augment`` contains those of the
    discriminators' augmentation, AUGMENT_NUMBERS for each image in AUGMENTED, or none if the plan draws none.
    """

    index_A: int
    index_B: int
    view_A: View
    view_B: View
    draw_A: tuple[float, float]
    draw_B: tuple[float, float]
    mix_A: float
    mix_B: float
    augment: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The samples of every epoch, for ``count_A`` and ``count_B`` images.

    An epoch has max(count_A, count_B) samples. When shuffled, sample i is A[order[i] mod count_A] and a
    uniformly random B. When serial, it is A[i mod count_A] and B[i mod count_B]. Each of ``ranks`` processes
    gets every ranks-th sample, starting at its ``rank``; together they see the same samples as one process
    with batches ``ranks`` times as large. In the last, partial batch of an epoch, some ranks may get one
    sample fewer than others, or none. Random numbers for augmentation are drawn only if ``augment`` is set.
    They are separate from the others, which therefore do not depend on it.
    """

    seed: int
    count_A: int
    count_B: int
    batch_size: int = 1
    serial: bool = False
    flip: bool = True
    rank: int = 0
    ranks: int = 1
    augment: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"Plan: rank must be in [0, ranks), got rank {self.rank} of {self.ranks}")

    def shard(self, rank: int, ranks: int) -> Plan:
        """Return the plan of process ``rank`` (from 0) out of ``ranks``."""
        return replace(self, rank=rank, ranks=ranks)

    def __len__(self) -> int:
        return max(self.count_A, self.count_B)

    @property
    def iterations_per_epoch(self) -> int:
        """Batches per epoch, including the last, partial one."""
        return -(-len(self) // (self.batch_size * self.ranks))

    def sample(self, epoch: int, i: int) -> Sample:
        """Return sample ``i`` (from 0) of ``epoch`` (from 1)."""
        u = uniforms(13, self.seed, epoch, _SAMPLE, i).tolist()
        if self.serial:
            index_A, index_B = i % self.count_A, i % self.count_B
        else:
            index_A = int(_order(len(self), self.seed, epoch)[i]) % self.count_A
            index_B = int(u[0] * self.count_B)
        view_A = View(u[1], u[2], self.flip and u[3] < 0.5)
        view_B = View(u[4], u[5], self.flip and u[6] < 0.5)
        draw_A, draw_B = (u[7], u[8]), (u[9], u[10])
        augment: tuple[float, ...] = ()
        if self.augment:
            count = len(AUGMENTED) * AUGMENT_NUMBERS
            augment = tuple(uniforms(count, self.seed, epoch, _AUGMENT, i).tolist())
        return Sample(index_A, index_B, view_A, view_B, draw_A, draw_B, u[11], u[12], augment)

    def batch(self, iteration: int) -> tuple[int, range]:
        """Return the epoch (from 1) and the rank's sample numbers of ``iteration``.

        Iterations are counted from 0 over all epochs.
        """
        epoch, index = divmod(iteration, self.iterations_per_epoch)
        samples = self.batch_size * self.ranks
        stop = min((index + 1) * samples, len(self))
        return epoch + 1, range(min(index * samples + self.rank, stop), stop, self.ranks)

    def batches(self, start: int, stop: int) -> Iterator[tuple[int, range]]:
        """Yield the result of ``batch`` for each iteration in [start, stop)."""
        return (self.batch(iteration) for iteration in range(start, stop))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.intp]:
    return np.argsort(uniforms(count, seed, epoch, _ORDER), kind="stable")
