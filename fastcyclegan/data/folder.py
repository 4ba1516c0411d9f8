"""The Pillow loader: batches of an unpaired dataset in the order of its plan, read by worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastcyclegan.config import DataConfig
from fastcyclegan.data.picture import BadPictureError, Pixels, crop_side, load_pixels, resized, take_view
from fastcyclegan.data.plan import Plan, Sample, View
from fastcyclegan.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Pictures of both domains, [N, C, H, W] in channels_last memory, in [-1, 1], on the device, and what their samples decided."""

    A: Tensor
    B: Tensor
    paths_A: list[str]
    paths_B: list[str]
    samples: list[Sample]


@dataclass(frozen=True)
class Source:
    """The pictures of one domain: files, or, once ``cached``, their decoded and resized pixels."""

    paths: list[Path]
    config: DataConfig
    channels: int
    multiple: int
    cached: list[Tensor] | None = None

    def pixels(self, index: int) -> Pixels:
        """Return picture ``index``, resized, [H, W, C] uint8. Raises BadPictureError."""
        if self.cached is not None:
            return self.cached[index].numpy()
        return load_pixels(self.paths[index], self.config, self.channels, self.multiple)

    def view(self, index: int, view: View) -> Pixels:
        """Return the crop of picture ``index`` that ``view`` names, an array of its own."""
        return take_view(self.pixels(index), view, crop_side(self.config)).copy()


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Return uint8 pixels [N, H, W, C] as floats in [-1, 1] on ``device``, [N, C, H, W] in channels_last memory."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def available_memory() -> int:
    """Return the bytes of memory that the system says are free to use."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_in_ram(sources: Sequence[Source], sizes: Sequence[Sequence[tuple[int, int]]], free: int | None = None) -> list[Source]:
    """Return ``sources`` with every picture decoded, resized and held in memory; ``sizes`` are the files' upright (width, height).

    Raises UserError, before anything is read, where they take more than half of the memory that is ``free``.
    """
    needed = 0
    for source, known in zip(sources, sizes, strict=True):
        for size in known:
            width, height = resized(size, source.config, source.multiple)
            needed += width * height * source.channels
    free = available_memory() if free is None else free
    if needed > free // 2:
        raise UserError(f"--cache ram: the pictures take {needed / 2**20:,.0f} MiB, more than half of the {free / 2**20:,.0f} MiB free")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        held = [list(pool.map(lambda i, s=source: torch.from_numpy(s.pixels(i).copy()), range(len(source.paths)))) for source in sources]
    return [Source(s.paths, s.config, s.channels, s.multiple, pixels) for s, pixels in zip(sources, held, strict=True)]


class _Unpaired(Dataset[object]):
    """One sample by (epoch, i): both views and the sample, or the BadPictureError that stood in the way (raised where it can be read)."""

    def __init__(self, a: Source, b: Source, plan: Plan) -> None:
        self.a, self.b, self.plan = a, b, plan

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Sample] | BadPictureError:
        sample = self.plan.sample(*key)
        try:
            a, b = self.a.view(sample.index_A, sample.view_A), self.b.view(sample.index_B, sample.view_B)
        except BadPictureError as bad:
            return bad
        return torch.from_numpy(a), torch.from_numpy(b), sample


def _collate(items: list[tuple[Tensor, Tensor, Sample] | BadPictureError]) -> tuple[Tensor, Tensor, list[Sample]] | BadPictureError:
    good: list[tuple[Tensor, Tensor, Sample]] = []
    for item in items:
        if isinstance(item, BadPictureError):
            return item
        good.append(item)
    a, b, samples = zip(*good, strict=True)
    return torch.stack(a), torch.stack(b), list(samples)


def _quiet_worker(_: int) -> None:
    """The main process decides what a signal to the whole group means; a worker ends when it is told to, or when its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn what torch raises, wherever the main process happens to be, when a loader process was killed, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise UserError(f"a loader process died ({str(error).splitlines()[0]}); fewer --num_threads need less memory") from None
        raise


class FolderLoader:
    """Batches of ``plan`` from two sources. ``batches(start, stop)`` yields those of the iterations [start, stop)."""

    def __init__(self, a: Source, b: Source, plan: Plan, device: torch.device) -> None:
        self.a, self.b, self.plan, self.device = a, b, plan, device
        self.workers = 0 if a.cached is not None else a.config.num_threads

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches in order. Raises BadPictureError for a file that broke since it was checked, UserError where a worker died."""
        if start >= stop:
            return
        keys = ([(epoch, i) for i in numbers] for epoch, numbers in self.plan.batches(start, stop))
        with warnings.catch_warnings():
            # torch warns of more workers than cores; how many there are was the user's choice.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            loader: DataLoader[Any] = DataLoader(
                _Unpaired(self.a, self.b, self.plan),
                batch_sampler=keys,
                num_workers=min(self.workers, stop - start),
                collate_fn=_collate,
                worker_init_fn=_quiet_worker,
                pin_memory=self.device.type == "cuda",
                # The loader draws a seed that nothing here uses: not from the generator that dropout and a resume depend on.
                generator=torch.Generator(),
            )
        with naming_dead_workers():
            for loaded in loader:
                yield self._batch(loaded)

    def _batch(self, loaded: tuple[Tensor, Tensor, list[Sample]] | BadPictureError) -> Batch:
        if isinstance(loaded, BadPictureError):
            raise loaded
        a, b, samples = loaded
        paths_A = [str(self.a.paths[sample.index_A]) for sample in samples]
        paths_B = [str(self.b.paths[sample.index_B]) for sample in samples]
        return Batch(to_unit_range(a, self.device), to_unit_range(b, self.device), paths_A, paths_B, samples)
