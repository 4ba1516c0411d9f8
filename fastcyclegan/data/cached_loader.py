"""Decode and resize every image once and keep it in memory, so that an epoch reads no files.

Crops and flips still come from the plan.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcyclegan.data.background import Stopping, never, raise_if
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.host_memory import free_memory
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Loader, Log, Reader, Row, Source
from fastcyclegan.data.sample_plan import Plan, View
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
        checked = source.checked[path]
        width, height = source.fit.resized((checked.width, checked.height))
        pixels += width * height
    return pixels * source.fit.channels


def cache_images(
    sources: Sequence[Source],
    readers: Sequence[Reader],
    device: torch.device,
    free: int | None = None,
    *,
    stopping: Stopping = never,
) -> list[CachedImages]:
    """Read all images of each source with the corresponding reader into the memory of ``device``.

    Raises UserError, before anything is read, if the images need more than half of the ``free`` bytes, and
    StoppedError between images once ``stopping`` returns True. If a file can no longer be read, its error is
    stored in place of the image.
    """
    needed = sum(bytes_needed(source) for source in sources)
    if free is None:
        free = free_memory(device)
    if needed > free // 2:
        cache = "gpu" if device.type == "cuda" else "ram"
        raise UserError(
            f"--cache {cache}: the images need {needed / 2**20:,.0f} MiB, more than half of the"
            f" {free / 2**20:,.0f} MiB that are free; use --cache none"
        )
    return [
        _cache_source(source, reader, device, stopping)
        for source, reader in zip(sources, readers, strict=True)
    ]


def _cache_source(source: Source, reader: Reader, device: torch.device, stopping: Stopping) -> CachedImages:
    size = bytes_needed(source)
    memory = torch.empty(size, dtype=torch.uint8, device=device)
    rows: list[Row] = []
    used = 0
    jobs = (Job(path, None, source.checked.get(path)) for path in source.paths)
    with contextlib.closing(reader.read(jobs)) as read:
        for _, row in read:
            raise_if(stopping)
            if isinstance(row, Tensor) and used + row.numel() <= size:
                slot = memory[used : used + row.numel()].view(row.shape)
                slot.copy_(row)
                used += row.numel()
                row = slot
            # If files grew after the check, images that do not fit in the block keep their own memory.
            rows.append(row)
    return CachedImages(rows, size)


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
        a: Source,
        b: Source,
        plan: Plan,
        device: torch.device,
        cached_A: CachedImages,
        cached_B: CachedImages,
        *,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        super().__init__(a, b, plan, device, skip_bad_images=skip_bad_images, log=log)
        self.cached_A, self.cached_B = cached_A, cached_B

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        for epoch, numbers in self.plan.batches(start, stop):
            rows = []
            for i in numbers:
                sample = self.plan.sample(epoch, i)
                a = self._view(self.cached_A, self.a.fit, sample.index_A, sample.view_A)
                b = self._view(self.cached_B, self.b.fit, sample.index_B, sample.view_B)
                rows.append(self._good_pair(sample, a, b))
            yield self._batch_of_rows(rows)

    def _view(self, cached: CachedImages, fit: Fit, index: int, view: View) -> Row:
        row = cached.rows[index]
        if isinstance(row, BadImageError):
            return row
        return view_of(row, fit, view, self.device)
