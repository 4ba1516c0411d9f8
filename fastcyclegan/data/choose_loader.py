"""Which loader reads: DALI where it is installed and serves the device, else Pillow; and loaders and readers
made of that choice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from fastcyclegan.config import DataConfig
from fastcyclegan.data.cached_loader import CachedLoader, hold
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.dali_pipeline import why_not_dali
from fastcyclegan.data.image_file import Fit
from fastcyclegan.data.loader import Loader, Log, Reader, Source
from fastcyclegan.data.pillow_loader import WORKERS, FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError

MOST_THREADS = 16


@dataclass(frozen=True)
class Choice:
    """The loader that reads, with how many threads or processes, and why it was taken."""

    kind: Literal["dali", "folder"]
    threads: int
    why: str

    def __str__(self) -> str:
        one, many = "process", "processes"
        if self.kind == "dali":
            one, many = "thread", "threads"
        workers = one if self.threads == 1 else many
        return f"{self.kind}, {self.threads} {workers} ({self.why})"


def cores() -> int:
    """Return the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    count = os.cpu_count()
    if count is None:
        return 1
    return count


def default_threads() -> int:
    """Return how many threads read where nothing is said of it."""
    return min(cores(), MOST_THREADS)


def choose(loader: str, device: torch.device, num_threads: int | None = None) -> Choice:
    """Return what ``loader`` ("auto", "dali" or "folder") means on ``device``. Raises UserError for "dali"
    where it does not work.
    """
    if loader == "folder":
        return _folder(num_threads, "asked for")
    problem = why_not_dali(device)
    if loader == "dali" and problem:
        raise UserError(f"--loader dali: {problem}")
    if problem:
        return _folder(num_threads, problem)
    if num_threads is None:
        num_threads = default_threads()
    why = "decodes and resizes on the GPU" if device.type == "cuda" else "decodes on the CPU"
    if loader == "dali":
        why = f"asked for, {why}"
    return Choice("dali", max(num_threads, 1), why)


def _folder(num_threads: int | None, why: str) -> Choice:
    if num_threads is None:
        num_threads = WORKERS
    return Choice("folder", num_threads, why)


def check_cache(cache: str, device: torch.device) -> None:
    """Raise UserError for a cache on a GPU that the run is not on."""
    if cache == "gpu" and device.type != "cuda":
        raise UserError(
            f"--cache gpu keeps images on a CUDA GPU, and this run is on the device {device.type}; use"
            " --cache ram"
        )


def make_reader(choice: Choice, fit: Fit, device: torch.device, log: Log) -> Reader:
    """Return what reads single images: on ``device`` where DALI does, else on the host."""
    if choice.kind == "dali":
        return DaliReader(fit, device, choice.threads, log)
    return PillowReader(fit, choice.threads)


def make_loader(
    choice: Choice, a: Source, b: Source, plan: Plan, device: torch.device, config: DataConfig, log: Log
) -> Loader:
    """Return the loader of ``choice``; with a cache, that which it filled.

    Raises UserError where the images do not fit the cache, or there is no such memory.
    """
    skip = config.skip_bad_images
    if config.cache != "none":
        check_cache(config.cache, device)
        where = device if config.cache == "gpu" else torch.device("cpu")
        readers = [make_reader(choice, source.fit, device, log) for source in (a, b)]
        held_A, held_B = hold((a, b), readers, where)
        total = (held_A.bytes + held_B.bytes) / 2**20
        log(f"--cache {config.cache}: {len(a.paths) + len(b.paths)} images held in {total:,.1f} MiB")
        return CachedLoader(a, b, plan, device, held_A, held_B, skip_bad_images=skip, log=log)
    if choice.kind == "dali":
        return DaliLoader(a, b, plan, device, threads=choice.threads, skip_bad_images=skip, log=log)
    return FolderLoader(a, b, plan, device, workers=choice.threads, skip_bad_images=skip, log=log)
