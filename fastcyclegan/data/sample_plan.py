"""Determine sample i of an epoch from nothing but (seed, epoch, i).

A sample consists of one image of A and one of B, the crop and flip of each, and the random numbers for the
replay pools, the gradient penalty and whatever else a recipe decides at random. Loaders, workers and devices
draw no random numbers themselves. Every loader therefore sees the same samples, and the position in a run is
a single integer: the number of completed iterations.

The random numbers are raw Philox words from numpy. Their bit streams are stable across numpy versions, unlike
its distributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_ORDER, _SAMPLE, _NUMBERS = 0, 1, 2


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
    """One sample. For single images, what concerns B has no meaning.

    ``draw_A`` and ``draw_B`` are the random numbers (swap, place) for the pools of fake A and fake B.
    ``mix_A`` and ``mix_B`` are those of the wgangp gradient penalty. ``numbers`` are further ones, as many as
    the recipe needs.
    """

    index_A: int
    index_B: int
    view_A: View
    view_B: View
    draw_A: tuple[float, float]
    draw_B: tuple[float, float]
    mix_A: float
    mix_B: float
    numbers: tuple[float, ...] = ()

    def index(self, side: str) -> int:
        """Return the index of the image of domain ``side``."""
        return self.index_A if side == "A" else self.index_B

    def view(self, side: str) -> View:
        """Return the crop and flip of the image of domain ``side``."""
        return self.view_A if side == "A" else self.view_B

    def with_indices(self, indices: Mapping[str, int]) -> Sample:
        """Return this sample with the images of other ``indices``, by domain."""
        index_A = indices["A"]
        return replace(self, index_A=index_A, index_B=indices.get("B", index_A))


@dataclass(frozen=True)
class Plan:
    """The samples of every epoch, for ``count_A`` and ``count_B`` images.

    An epoch has max(count_A, count_B) samples. When shuffled, sample i is A[order[i] mod count_A] and a
    uniformly random B. When serial, it is A[i mod count_A] and B[i mod count_B]. Each of ``ranks`` processes
    gets every ranks-th sample, starting at its ``rank``; together they see the same samples as one process
    with batches ``ranks`` times as large. In the last, partial batch of an epoch, some ranks may get one
    sample fewer than others, or none. ``numbers`` is how many further random numbers a sample has. They are
    separate from the others, which therefore do not depend on it.

    If ``paired`` is set, both counts must be equal, B[i] belongs to A[i], and both get the same crop and
    flip. This is also the plan of single images.
    """

    seed: int
    count_A: int
    count_B: int
    batch_size: int = 1
    serial: bool = False
    flip: bool = True
    rank: int = 0
    ranks: int = 1
    numbers: int = 0
    paired: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"Plan: rank must be in [0, ranks), got rank {self.rank} of {self.ranks}")
        if self.paired and self.count_A != self.count_B:
            raise ValueError(f"Plan: pairs need equal counts, got {self.count_A} and {self.count_B}")

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
        if self.paired:
            index_B, view_B = index_A, view_A
        draw_A, draw_B = (u[7], u[8]), (u[9], u[10])
        numbers: tuple[float, ...] = ()
        if self.numbers:
            numbers = tuple(uniforms(self.numbers, self.seed, epoch, _NUMBERS, i).tolist())
        return Sample(index_A, index_B, view_A, view_B, draw_A, draw_B, u[11], u[12], numbers)

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
