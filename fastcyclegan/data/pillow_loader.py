"""Read images with Pillow: batches from worker processes in the order of a plan, or single images."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.data.background import ReadingThreads, Stopping, never, raise_if, result_of
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import Fit, load_halves, take_view
from fastcyclegan.data.image_file import BadImageError, LackOfMemoryError, Pixels
from fastcyclegan.data.loader import Job, Loader, Log, Row, Source, neighbours
from fastcyclegan.data.sample_plan import Plan, Sample
from fastcyclegan.data.source import next_good_images, next_good_pair
from fastcyclegan.data.worker_pool import Arrays, loaded_by_workers

WORKERS = 4
AHEAD_BYTES = 2**28
"""Maximum number of bytes of the images that PillowReader has read before they are needed."""
_Read = tuple[list[Sample], list[BadImageError]]


class _Reading:
    """Reads the images of an iteration, in a worker or in the main process.

    A call returns the samples as they were read, with the errors of skipped images, and the pixels
    [N, H, W, C] of each domain, or none if the iteration has no samples for this rank.
    """

    def __init__(self, sources: Mapping[str, Source], plan: Plan, stopping: Stopping = never) -> None:
        # The results of the checks are removed, because every worker would get a copy of them.
        self.sources = {side: dataclasses.replace(source, checked={}) for side, source in sources.items()}
        self.plan, self.stopping = plan, stopping

    def __call__(self, iteration: int) -> tuple[_Read, Arrays]:
        epoch, numbers = self.plan.batch(iteration)
        samples, bad, read = list[Sample](), list[BadImageError](), []
        for i in numbers:
            raise_if(self.stopping)
            views, sample, errors = self._sample(self.plan.sample(epoch, i))
            samples.append(sample)
            bad += errors
            read.append(views)
        if not samples:
            return (samples, bad), []
        return (samples, bad), [np.stack([views[side] for views in read]) for side in self.sources]

    def _sample(self, sample: Sample) -> tuple[dict[str, Pixels], Sample, list[BadImageError]]:
        if self.plan.paired:
            return next_good_pair(self.sources, sample.index_A, sample, self.stopping)
        return next_good_images(self.sources, sample, self.stopping)


class FolderLoader(Loader):
    """A loader that reads with Pillow in ``workers`` processes, or in this one if ``workers`` is 0."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        plan: Plan,
        device: torch.device,
        *,
        workers: int = 0,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        super().__init__(sources, plan, device, skip_bad_images=skip_bad_images, log=log)
        self.workers = workers

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        if self.workers == 0:
            reading = _Reading(self.sources, self.plan, lambda: self.stopping())
            for iteration in range(start, stop):
                read, arrays = reading(iteration)
                tensors = [torch.from_numpy(array) for array in arrays]
                if self.device.type == "cuda":
                    tensors = [tensor.pin_memory() for tensor in tensors]
                yield self._batch_of(read, tensors)
        elif start < stop:
            yield from self._from_workers(range(start, stop))

    def _from_workers(self, iterations: range) -> Generator[Batch]:
        with loaded_by_workers(
            _Reading(self.sources, self.plan),
            iterations,
            self.workers,
            pin=self.device.type == "cuda",
            stopping=lambda: self.stopping(),
        ) as loaded:
            for read, tensors in loaded:
                yield self._batch_of(read, tensors)

    def _batch_of(self, read: _Read, tensors: list[Tensor]) -> Batch:
        samples, bad = read
        if not samples:
            return self._batch_of_rows([])
        self._skip_or_raise(bad)
        return self._batch(dict(zip(self.sources, tensors, strict=True)), samples)


class PillowReader:
    """A reader that reads single images with Pillow in ``threads`` threads, a few ahead of its consumer.

    The first warning about a file that was not checked is logged.
    """

    def __init__(
        self, fit: Fit, threads: int, log: Log = lambda text: None, *, stopping: Stopping = never
    ) -> None:
        self.fit, self.threads, self.log, self.stopping = fit, max(threads, 1), log, stopping
        self._largest = 0

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]:
        """Yield each job with its pixels, in order."""
        waiting: deque[tuple[tuple[Job, ...], Future[list[Row]]]] = deque()
        warnings: list[str] = []
        with ReadingThreads(self.threads) as threads:
            for group in neighbours(jobs):
                waiting.append((group, threads.submit(read_with_pillow, group, self.fit, warnings.append)))
                while len(waiting) > self._ahead():
                    yield from self._finished(*waiting.popleft(), warnings)
            for group, rows in waiting:
                yield from self._finished(group, rows, warnings)

    def _ahead(self) -> int:
        """Return how many images may be read before they are needed. There are fewer if some are large."""
        if self._largest == 0:  # none has been read yet, so the size is unknown
            return 1
        return max(1, min(self.threads, AHEAD_BYTES // self._largest))

    def _finished(
        self, group: tuple[Job, ...], read: Future[list[Row]], warnings: list[str]
    ) -> Iterator[tuple[Job, Row]]:
        rows = result_of(read, self.stopping)
        size = sum(row.numel() for row in rows if isinstance(row, Tensor))
        self._largest = max(self._largest, size)
        if warnings:
            self.log(warnings[0])
            warnings.clear()
            self.log = lambda text: None
        return zip(group, rows, strict=True)


def read_with_pillow(jobs: Sequence[Job], fit: Fit, warn: Log | None = None) -> list[Row]:
    """Read the images of ``jobs``, which are in one file: their pixels, or the error if it cannot be read.

    ``warn`` is called with a warning about the file, unless an earlier check has had the opportunity.
    """
    path = jobs[0].path
    if jobs[0].checked is not None:
        warn = None
    try:
        read = load_halves(path, fit, [job.half for job in jobs], warn)
        return [
            torch.from_numpy(take_view(pixels, fit, job.view).copy())
            for job, pixels in zip(jobs, read, strict=True)
        ]
    except BadImageError as bad:
        return [bad] * len(jobs)
    except MemoryError:
        return [LackOfMemoryError(path)] * len(jobs)
