"""What every loader shares: the images of a domain, and what is done about a file that broke."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.image_file import BadImageError, Fit, Pixels, load_pixels, take_view
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.data.sample_plan import Plan, Sample, View
from fastcyclegan.errors import UserError

Log = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The images of one domain, and what they become. ``checked`` is what is known of the files, by
    path."""

    paths: Sequence[Path]
    fit: Fit
    checked: dict[Path, Checked]

    def view(self, index: int, view: View) -> Pixels:
        """Return what ``view`` shows of image ``index``, read by Pillow, an array of its own. Raises
        BadImageError.
        """
        return take_view(load_pixels(self.paths[index], self.fit), self.fit, view).copy()

    def view_of_next_good(self, index: int, view: View) -> tuple[Pixels, int, list[BadImageError]]:
        """Return ``view`` of image ``index``, or, if it cannot be read, of the first after it that can; its
        number; and the bad ones.

        Raises UserError where there is none left.
        """
        bad: list[BadImageError] = []
        for at in (*range(index, len(self.paths)), *range(index)):
            try:
                return self.view(at, view), at, bad
            except BadImageError as error:
                bad.append(error)
        raise UserError(f"none of the {len(self.paths)} images can be read any more; the first: {bad[0]}")


@dataclass(frozen=True)
class Job:
    """One image to read: all of it, or what ``view`` shows. ``checked`` is what was known of the file;
    ``tag`` is the asker's.
    """

    path: Path
    view: View | None = None
    checked: Checked | None = None
    tag: Any = None


Row = Tensor | BadImageError
"""One image read: [H, W, C] uint8 on the reader's device, or what was wrong with the file."""


class Reader(Protocol):
    """Reads many images fast, in order. A bad file is part of what it gives; a consumer that stops early
    closes the generator.
    """

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]: ...


class Loader(ABC):
    """Batches of ``plan`` from two sources.

    A file that cannot be read any more ends the run with its name, or with ``skip_bad_images`` is said once
    and the next image takes its place.
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
        self._logged: set[str] = set()

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of the iterations [start, stop). Raises UserError for a file that broke, or what
        reads them died.
        """

    def _leave_out(self, bad: Iterable[BadImageError]) -> None:
        for error in bad:
            if not self.skip_bad_images:
                raise UserError(f"bad image {error}; --skip_bad_images leaves such images out") from None
            if error.path not in self._logged:
                self._logged.add(error.path)
                self.log(f"left out {error}; the next image takes its place")

    def _rescued(self, source: Source, index: int, view: View, row: Row) -> tuple[Tensor, int]:
        """Return ``row`` and ``index``, or where it is a bad image those of the one that takes its
        place."""
        if isinstance(row, Tensor):
            return row, index
        self._leave_out([row])
        pixels, index, bad = source.view_of_next_good((index + 1) % len(source.paths), view)
        self._leave_out(bad)
        return torch.from_numpy(pixels).to(self.device), index

    def _rescued_pair(self, sample: Sample, row_A: Row, row_B: Row) -> tuple[Tensor, Tensor, Sample]:
        a, index_A = self._rescued(self.a, sample.index_A, sample.view_A, row_A)
        b, index_B = self._rescued(self.b, sample.index_B, sample.view_B, row_B)
        return a, b, replace(sample, index_A=index_A, index_B=index_B)

    def _batch(self, pixels_A: Tensor, pixels_B: Tensor, samples: list[Sample]) -> Batch:
        """Return the batch of uint8 pixels [N, H, W, C]."""
        paths_A = [str(self.a.paths[sample.index_A]) for sample in samples]
        paths_B = [str(self.b.paths[sample.index_B]) for sample in samples]
        A, B = to_unit_range(pixels_A, self.device), to_unit_range(pixels_B, self.device)
        return Batch(A, B, paths_A, paths_B, samples)

    def _batch_of_rows(self, rows: Sequence[tuple[Tensor, Tensor, Sample]]) -> Batch:
        """Return the batch of rows [H, W, C]; an empty one (of a rank that gets no sample) has the size of
        the crop.
        """
        rows_A, rows_B, samples = [], [], []
        for a, b, sample in rows:
            rows_A.append(a)
            rows_B.append(b)
            samples.append(sample)
        return self._batch(_stacked(rows_A, self.a.fit), _stacked(rows_B, self.b.fit), samples)


def _stacked(rows: list[Tensor], fit: Fit) -> Tensor:
    if not rows:
        side = 8 if fit.side is None else fit.side
        return torch.empty(0, side, side, fit.channels, dtype=torch.uint8)
    if len(rows) == 1:
        return rows[0][None]
    if rows[0].device.type == "cpu":
        return torch.from_numpy(np.stack([row.numpy() for row in rows]))
    return torch.stack(rows)
