"""Read images with Pillow: batches from worker processes in the order of a plan, or single images."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.data.background import ReadingThreads, Stopping, never, raise_if, result_of
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import Fit, load_pixels, take_view
from fastcyclegan.data.image_file import BadImageError, LackOfMemoryError
from fastcyclegan.data.loader import Job, Loader, Log, Row, Source
from fastcyclegan.data.sample_plan import Plan, Sample
from fastcyclegan.data.worker_pool import Arrays, loaded_by_workers

WORKERS = 4
AHEAD_BYTES = 2**28
"""Maximum number of bytes of the images that PillowReader has read before they are needed."""
_Read = tuple[list[Sample], list[BadImageError]]


class _Reading:
    """Reads the images of an iteration, in a worker or in the main process.

    A call returns the samples as they were read, with the errors of skipped images, and the pixels
    [N, H, W, C] of both domains, or none if the iteration has no samples for this rank.
    """

    def __init__(self, a: Source, b: Source, plan: Plan, stopping: Stopping = never) -> None:
        # The results of the checks are removed, because every worker would get a copy of them.
        self.a = dataclasses.replace(a, checked={})
        self.b = dataclasses.replace(b, checked={})
        self.plan, self.stopping = plan, stopping

    def __call__(self, iteration: int) -> tuple[_Read, Arrays]:
        epoch, numbers = self.plan.batch(iteration)
        samples, bad, pixels_A, pixels_B = [], [], [], []
        for i in numbers:
            raise_if(self.stopping)
            sample = self.plan.sample(epoch, i)
            a, index_A, bad_A = self.a.view_of_next_good(sample.index_A, sample.view_A, self.stopping)
            b, index_B, bad_B = self.b.view_of_next_good(sample.index_B, sample.view_B, self.stopping)
            samples.append(dataclasses.replace(sample, index_A=index_A, index_B=index_B))
            bad += bad_A + bad_B
            pixels_A.append(a)
            pixels_B.append(b)
        if not samples:
            return (samples, bad), []
        return (samples, bad), [np.stack(pixels_A), np.stack(pixels_B)]


class FolderLoader(Loader):
    """A loader that reads with Pillow in ``workers`` processes, or in this one if ``workers`` is 0."""

    def __init__(
        self,
        a: Source,
        b: Source,
        plan: Plan,
        device: torch.device,
        *,
        workers: int = 0,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        super().__init__(a, b, plan, device, skip_bad_images=skip_bad_images, log=log)
        self.workers = workers

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        if self.workers == 0:
            reading = _Reading(self.a, self.b, self.plan, lambda: self.stopping())
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
            _Reading(self.a, self.b, self.plan),
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
        return self._batch(tensors[0], tensors[1], samples)


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
        waiting: deque[tuple[Job, Future[Row]]] = deque()
        warnings: list[str] = []
        with ReadingThreads(self.threads) as threads:
            for job in jobs:
                waiting.append((job, threads.submit(read_with_pillow, job, self.fit, warnings.append)))
                while len(waiting) > self._ahead():
                    yield self._finished(*waiting.popleft(), warnings)
            for job, pixels in waiting:
                yield self._finished(job, pixels, warnings)

    def _ahead(self) -> int:
        """Return how many images may be read before they are needed. There are fewer if some are large."""
        if self._largest == 0:  # none has been read yet, so the size is unknown
            return 1
        return max(1, min(self.threads, AHEAD_BYTES // self._largest))

    def _finished(self, job: Job, pixels: Future[Row], warnings: list[str]) -> tuple[Job, Row]:
        row = result_of(pixels, self.stopping)
        if isinstance(row, Tensor):
            self._largest = max(self._largest, row.numel())
        if warnings:
            self.log(warnings[0])
            warnings.clear()
            self.log = lambda text: None
        return job, row


def read_with_pillow(job: Job, fit: Fit, warn: Log | None = None) -> Row:
    """Read the image of ``job`` and return its pixels, or the error if the file cannot be read.

    ``warn`` is called with a warning about the image, unless an earlier check has had the opportunity.
    """
    if job.checked is not None:
        warn = None
    try:
        return torch.from_numpy(take_view(load_pixels(job.path, fit, warn), fit, job.view).copy())
    except BadImageError as bad:
        return bad
    except MemoryError:
        return LackOfMemoryError(job.path)
