"""Decode and resize every image once and keep it in memory, so that an epoch reads no files.

Crops and flips still come from the plan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastcyclegan.data.background import Stopping, never, raise_if
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.equal_sizes import resized_size
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.host_memory import free_memory
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Loader, Log, Reader, Row, Source
from fastcyclegan.data.sample_plan import Plan, Sample, View
from fastcyclegan.data.source import have_one_fit
from fastcyclegan.errors import UserError


@dataclass(frozen=True)
class CachedImages:
    """The resized images of one source, as [H, W, C] uint8 ``rows``.

    The images are stored one after another in a single block of memory.
    """

    rows: list[Row]
    bytes: int


def bytes_needed(source: Source) -> int:
    """Return the number of bytes that the resized images of ``source`` need.

    It is computed from the image sizes found when the files were checked.
    """
    pixels = 0
    for path in source.paths:
        width, height = resized_size(source.checked[path], source.fit, source.half)
        pixels += width * height
    return pixels * source.fit.channels


def cache_images(
    sources: Mapping[str, Source],
    readers: Mapping[str, Reader],
    device: torch.device,
    free: int | None = None,
    *,
    stopping: Stopping = never,
) -> dict[str, CachedImages]:
    """Read all images of each source with the reader of its domain into the memory of ``device``.

    Raises UserError, before anything is read, if the images need more than half of the ``free`` bytes, and
    StoppedError between images once ``stopping`` returns True. If a file can no longer be read, its error is
    stored in place of the image.
    """
    needed = sum(bytes_needed(source) for source in sources.values())
    if free is None:
        free = free_memory(device)
    if needed > free // 2:
        cache = "gpu" if device.type == "cuda" else "ram"
        raise UserError(
            f"--cache {cache}: the images need {needed / 2**20:,.0f} MiB, more than half of the"
            f" {free / 2**20:,.0f} MiB that are free; use --cache none"
        )
    cached: dict[str, CachedImages] = {}
    for sides in _read_together(sources):
        blocks = {side: _Block(bytes_needed(sources[side]), device) for side in sides}
        with contextlib.closing(readers[sides[0]].read(_jobs(sources, sides))) as read:
            for job, row in read:
                raise_if(stopping)
                blocks[job.tag].append(row)
        cached |= {side: CachedImages(block.rows, block.size) for side, block in blocks.items()}
    return cached


def _read_together(sources: Mapping[str, Source]) -> list[tuple[str, ...]]:
    """Return the domains in the groups in which they are read: all at once if that decodes files once."""
    if have_one_fit(sources) and all(source.half is not None for source in sources.values()):
        return [tuple(sources)]
    return [(side,) for side in sources]


def _jobs(sources: Mapping[str, Source], sides: Sequence[str]) -> Iterator[Job]:
    for index in range(len(sources[sides[0]].paths)):
        for side in sides:
            source = sources[side]
            path = source.paths[index]
            yield Job(path, None, source.checked.get(path), side, source.half)


@dataclass
class _Block:
    """A block of ``size`` bytes on ``device``, and the images that were copied into it."""

    size: int
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    used: int = 0

    def __post_init__(self) -> None:
        self.memory = torch.empty(self.size, dtype=torch.uint8, device=self.device)

    def append(self, row: Row) -> None:
        end = self.used
        if isinstance(row, Tensor):
            end += row.numel()
        # If files grew after the check, images that do not fit in the block keep their own memory.
        if isinstance(row, Tensor) and end <= self.size:
            slot = self.memory[self.used : end].view(row.shape)
            slot.copy_(row)
            row, self.used = slot, end
        self.rows.append(row)


def view_of(pixels: Tensor, fit: Fit, view: View, device: torch.device) -> Tensor:
    """Crop and flip resized ``pixels`` [H, W, C] according to ``view``, and return them on ``device``.

    Only the crop is copied to the device, and it is flipped there.
    """
    left, top, width, height = fit.box((pixels.shape[1], pixels.shape[0]), view)
    crop = pixels[top : top + height, left : left + width]
    if pixels.device.type == "cpu" and device.type == "cuda":
        crop = crop.contiguous().pin_memory()
    crop = crop.to(device, non_blocking=True)
    if view.flip:
        return crop.flip(1)
    return crop


class CachedLoader(Loader):
    """A loader that takes its images from memory, on the device or on the host."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        plan: Plan,
        device: torch.device,
        cached: Mapping[str, CachedImages],
        *,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        super().__init__(sources, plan, device, skip_bad_images=skip_bad_images, log=log)
        self.cached = dict(cached)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        for epoch, numbers in self.plan.batches(start, stop):
            rows = []
            for i in numbers:
                sample = self.plan.sample(epoch, i)
                rows.append(self._good(sample, {side: self._view(side, sample) for side in self.sources}))
            yield self._batch_of_rows(rows)

    def _view(self, side: str, sample: Sample) -> Row:
        row = self.cached[side].rows[sample.index(side)]
        if isinstance(row, BadImageError):
            return row
        return view_of(row, self.sources[side].fit, sample.view(side), self.device)
