"""Common parts of all loaders: the images of a domain, and the handling of files that become unreadable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.data.background import Stopping, never, raise_if
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.fit import Fit, load_pixels, take_view
from fastcyclegan.data.image_file import BadImageError, Pixels, Size
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.data.sample_plan import Plan, Sample, View
from fastcyclegan.errors import UserError

Log = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The image files of one domain, and how to resize, crop and convert them.

    ``checked`` maps the paths of the files to the results of their checks. ``size`` is the (width, height)
    that all images must have when they are loaded, or None if they may differ.
    """

    paths: Sequence[Path]
    fit: Fit
    checked: dict[Path, Checked]
    size: Size | None = None

    def require_size(self, index: int, size: Size) -> None:
        """Raise BadImageError if image ``index`` was loaded with another ``size`` than all images must have.

        Its file then changed after it was checked.
        """
        if self.size is not None and size != self.size:
            (width, height), (wanted_width, wanted_height) = size, self.size
            now = f"--preprocess {self.fit.preprocess} makes it {width}x{height} now"
            wanted = f"all images of a batch must be {wanted_width}x{wanted_height}"
            raise BadImageError(self.paths[index], f"{now}, but {wanted}")

    def view(self, index: int, view: View) -> Pixels:
        """Read image ``index`` with Pillow, crop and flip it according to ``view``, and return a new array.

        Raises BadImageError if the image cannot be used.
        """
        pixels = take_view(load_pixels(self.paths[index], self.fit), self.fit, view)
        self.require_size(index, (pixels.shape[1], pixels.shape[0]))
        return pixels.copy()

    def view_of_next_good(
        self, index: int, view: View, stopping: Stopping = never
    ) -> tuple[Pixels, int, list[BadImageError]]:
        """Read image ``index`` or, if it cannot be read, the next image that can.

        Returns its pixels (cropped and flipped according to ``view``), its index, and the errors of the bad
        images before it. Raises UserError if no image can be read or memory runs out, and StoppedError
        between images once ``stopping`` returns True.
        """
        bad: list[BadImageError] = []
        for number in (*range(index, len(self.paths)), *range(index)):
            raise_if(stopping)
            try:
                return self.view(number, view), number, bad
            except BadImageError as error:
                if error.is_lack_of_memory:
                    raise
                bad.append(error)
        raise UserError(
            f"none of the {len(self.paths)} images can be read any more; the first error: {bad[0]}"
        )


@dataclass(frozen=True)
class Job:
    """One image to read, either whole or cropped and flipped according to ``view``.

    ``checked`` is the result of an earlier check of the file, or None. ``tag`` is any value that the caller
    wants to attach.
    """

    path: Path
    view: View | None = None
    checked: Checked | None = None
    tag: Any = None


Row = Tensor | BadImageError
"""The result of reading an image: [H, W, C] uint8 on the reader's device, or the error of a bad file."""


class Reader(Protocol):
    """Interface of fast readers, which read many images in order.

    For a bad file, the error is yielded in place of the pixels. A consumer that stops early must close the
    generator.
    """

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]: ...


class Loader(ABC):
    """Base class of loaders, which yield the batches of ``plan`` from two sources.

    A file that can no longer be read ends the run with an error that names the file. With
    ``skip_bad_images``, the file is logged once instead, and the next image takes its place, unless it is
    only memory that is lacking.

    ``stopping`` can be set to a function that returns whether the run should stop. A loader that waits for
    images calls it several times per second, in the thread of its consumer.
    """

    def __init__(
        self,
        a: Source,
        b: Source,
        plan: Plan,
        device: torch.device,
        *,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        self.a, self.b, self.plan, self.device = a, b, plan, device
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
                self.log(f"skipped {error}; the next image takes its place")

    def _row_or_next_good(self, source: Source, index: int, view: View, row: Row) -> tuple[Tensor, int]:
        """Return ``row`` and ``index`` or, if ``row`` cannot be used, those of the next good image."""
        try:
            if isinstance(row, Tensor):
                source.require_size(index, (row.shape[1], row.shape[0]))
                return row, index
        except BadImageError as error:
            row = error
        self._skip_or_raise([row])
        index = (index + 1) % len(source.paths)
        pixels, index, bad = source.view_of_next_good(index, view, self.stopping)
        self._skip_or_raise(bad)
        return torch.from_numpy(pixels).to(self.device), index

    def _good_pair(self, sample: Sample, row_A: Row, row_B: Row) -> tuple[Tensor, Tensor, Sample]:
        a, index_A = self._row_or_next_good(self.a, sample.index_A, sample.view_A, row_A)
        b, index_B = self._row_or_next_good(self.b, sample.index_B, sample.view_B, row_B)
        return a, b, replace(sample, index_A=index_A, index_B=index_B)

    def _batch(self, pixels_A: Tensor, pixels_B: Tensor, samples: list[Sample]) -> Batch:
        """Make a batch from the uint8 pixels [N, H, W, C] of both domains."""
        paths_A = [str(self.a.paths[sample.index_A]) for sample in samples]
        paths_B = [str(self.b.paths[sample.index_B]) for sample in samples]
        A, B = to_unit_range(pixels_A, self.device), to_unit_range(pixels_B, self.device)
        return Batch(A, B, paths_A, paths_B, samples)

    def _batch_of_rows(self, rows: Sequence[tuple[Tensor, Tensor, Sample]]) -> Batch:
        """Make a batch from images [H, W, C] of both domains and their samples.

        If there are no samples for this rank, the batch is empty. It still has the height and width of the
        others, if all have the same.
        """
        rows_A, rows_B, samples = [], [], []
        for a, b, sample in rows:
            rows_A.append(a)
            rows_B.append(b)
            samples.append(sample)
        return self._batch(_stacked(rows_A, self.a), _stacked(rows_B, self.b), samples)


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
