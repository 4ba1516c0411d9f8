"""Common parts of all loaders: images to read, and the handling of files that become unreadable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.data.background import Stopping, never
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.halves import Half
from fastcyclegan.data.image_file import BadImageError, Size
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.data.sample_plan import Plan, Sample, View
from fastcyclegan.data.source import Source, next_good_pair, require_equal_sizes, sources_of
from fastcyclegan.errors import UserError

__all__ = ["Job", "Loader", "Log", "Reader", "Row", "Source", "neighbours", "sources_of"]

Log = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One image to read, either whole or cropped and flipped according to ``view``.

    ``checked`` is the result of an earlier check of the file, or None. ``tag`` is any value that the caller
    wants to attach. ``half`` is the half of the file that is the image, or None.
    """

    path: Path
    view: View | None = None
    checked: Checked | None = None
    tag: Any = None
    half: Half | None = None


def neighbours(jobs: Iterable[Job]) -> Iterator[tuple[Job, ...]]:
    """Yield ``jobs`` in groups whose file need only be decoded once.

    A group consists of two jobs in a row of halves of the same file, or of one job.
    """
    waiting: Job | None = None
    for job in jobs:
        if waiting is not None and job.half is not None and job.path == waiting.path:
            yield waiting, job
            waiting = None
            continue
        if waiting is not None:
            yield (waiting,)
            waiting = None
        if job.half is None:
            yield (job,)
        else:
            waiting = job
    if waiting is not None:
        yield (waiting,)


Row = Tensor | BadImageError
"""The result of reading an image: [H, W, C] uint8 on the reader's device, or the error of a bad file."""


class Reader(Protocol):
    """Interface of fast readers, which read many images in order.

    For a bad file, the error is yielded in place of the pixels. A consumer that stops early must close the
    generator.
    """

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]: ...


class Loader(ABC):
    """Base class of loaders, which yield the batches of ``plan`` from the sources of the domains.

    ``sources`` maps the names of the domains, A and B or only A, to their sources. A file that can no longer
    be read ends the run with an error that names the file. With ``skip_bad_images``, the file is logged once
    instead, and the next image takes its place, unless it is only memory that is lacking. If the plan is
    paired, it is the next pair of which both images can be read.

    ``stopping`` can be set to a function that returns whether the run should stop. A loader that waits for
    images calls it several times per second, in the thread of its consumer.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        plan: Plan,
        device: torch.device,
        *,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        self.sources, self.plan, self.device = dict(sources), plan, device
        self.skip_bad_images, self.log = skip_bad_images, log
        self.stopping: Stopping = never
        self._logged: set[str] = set()

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of the iterations [start, stop).

        Raises UserError if a file can no longer be read, or if a reading process died, and StoppedError if
        ``stopping`` returns True while the loader waits for images.
        """

    def _skip_or_raise(self, bad: Iterable[BadImageError]) -> None:
        for error in bad:
            if error.is_lack_of_memory:
                raise error
            if not self.skip_bad_images:
                raise UserError(f"bad image {error}; pass --skip_bad_images to skip such images") from None
            if error.path not in self._logged:
                self._logged.add(error.path)
                next_one = "pair" if self.plan.paired and len(self.sources) > 1 else "image"
                self.log(f"skipped {error}; the next {next_one} takes its place")

    def _good(self, sample: Sample, rows: Mapping[str, Row]) -> tuple[dict[str, Tensor], Sample]:
        """Return the images ``rows`` of ``sample``, or in the place of those that cannot be used the next.

        The returned sample has the indices of the images that are returned.
        """
        if self.plan.paired:
            return self._pair_or_next_good(sample, rows)
        images, indices = dict[str, Tensor](), dict[str, int]()
        for side, row in rows.items():
            images[side], indices[side] = self._row_or_next_good(
                self.sources[side], sample.index(side), sample.view(side), row
            )
        return images, sample.with_indices(indices)

    def _row_or_next_good(self, source: Source, index: int, view: View, row: Row) -> tuple[Tensor, int]:
        """Return ``row`` and ``index`` or, if ``row`` cannot be used, those of the next good image."""
        try:
            if isinstance(row, Tensor):
                source.require_size(index, _size(row))
                return row, index
        except BadImageError as error:
            row = error
        self._skip_or_raise([row])
        index = (index + 1) % len(source.paths)
        pixels, index, bad = source.view_of_next_good(index, view, self.stopping)
        self._skip_or_raise(bad)
        return torch.from_numpy(pixels).to(self.device), index

    def _pair_or_next_good(self, sample: Sample, rows: Mapping[str, Row]) -> tuple[dict[str, Tensor], Sample]:
        """Return the pair ``rows`` and ``sample`` or, if one cannot be used, those of the next good pair."""
        index, bad, good = sample.index_A, list[BadImageError](), dict[str, Tensor]()
        try:
            for side, row in rows.items():
                if isinstance(row, Tensor):
                    self.sources[side].require_size(index, _size(row))
                    good[side] = row
                else:
                    bad.append(row)
            if not bad:
                require_equal_sizes(self.sources, index, {side: _size(row) for side, row in good.items()})
                return good, sample
        except BadImageError as error:
            bad.append(error)
        self._skip_or_raise(bad)
        index = (index + 1) % len(self.sources["A"].paths)
        pixels, sample, bad = next_good_pair(self.sources, index, sample, self.stopping)
        self._skip_or_raise(bad)
        return {side: torch.from_numpy(view).to(self.device) for side, view in pixels.items()}, sample

    def _batch(self, pixels: Mapping[str, Tensor], samples: list[Sample]) -> Batch:
        """Make a batch from the uint8 pixels [N, H, W, C] of each domain."""
        paths = {}
        for side, source in self.sources.items():
            paths[side] = [str(source.paths[sample.index(side)]) for sample in samples]
        images = {side: to_unit_range(rows, self.device) for side, rows in pixels.items()}
        return Batch(images, paths, samples)

    def _batch_of_rows(self, rows: Sequence[tuple[Mapping[str, Tensor], Sample]]) -> Batch:
        """Make a batch from the images [H, W, C] of each sample, by domain.

        If there are no samples for this rank, the batch is empty. It still has the height and width of the
        others, if all have the same.
        """
        pixels = {
            side: _stacked([images[side] for images, _ in rows], source)
            for side, source in self.sources.items()
        }
        return self._batch(pixels, [sample for _, sample in rows])


def _size(row: Tensor) -> Size:
    return row.shape[1], row.shape[0]


def _stacked(rows: list[Tensor], source: Source) -> Tensor:
    if not rows:
        width, height = 8, 8
        if source.fit.crop is not None:
            width, height = source.fit.crop
        elif source.size is not None:
            width, height = source.size
        return torch.empty(0, height, width, source.fit.channels, dtype=torch.uint8)
    if len(rows) == 1:
        return rows[0][None]
    if rows[0].device.type == "cpu":
        return torch.from_numpy(np.stack([row.numpy() for row in rows]))
    return torch.stack(rows)
