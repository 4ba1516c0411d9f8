"""Choose the loader that reads images, and build loaders and readers from that choice.

DALI is chosen if it is installed and supports the device, otherwise Pillow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fastcyclegan.data.background import Stopping, never
from fastcyclegan.data.cached_loader import CachedLoader, cache_images
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.dali_pipeline import why_not_dali
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.loader import Loader, Log, Reader, Source
from fastcyclegan.data.pillow_loader import WORKERS, FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig

MAX_THREADS = 16


@dataclass(frozen=True)
class Choice:
    """The loader that was chosen, its number of threads or processes, and the reason for the choice."""

    kind: Literal["dali", "folder"]
    threads: int
    reason: str

    def __str__(self) -> str:
        one, many = "process", "processes"
        if self.kind == "dali":
            one, many = "thread", "threads"
        workers = one if self.threads == 1 else many
        return f"{self.kind}, {self.threads} {workers} ({self.reason})"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    count = os.cpu_count()
    if count is None:
        return 1
    return count


def default_threads() -> int:
    """Return the number of reading threads to use if none is configured."""
    return min(cores(), MAX_THREADS)


def choose(loader: str, device: torch.device, num_threads: int | None = None) -> Choice:
    """Resolve ``loader`` ("auto", "dali" or "folder") for ``device``.

    Raises UserError for "dali" if DALI does not work on ``device``.
    """
    if loader == "folder":
        return _folder(num_threads, "requested")
    problem = why_not_dali(device)
    if loader == "dali" and problem:
        raise UserError(f"--loader dali: {problem}")
    if problem:
        return _folder(num_threads, problem)
    if num_threads is None:
        num_threads = default_threads()
    reason = "decodes and resizes on the GPU" if device.type == "cuda" else "decodes on the CPU"
    if loader == "dali":
        reason = f"requested, {reason}"
    return Choice("dali", max(num_threads, 1), reason)


def _folder(num_threads: int | None, reason: str) -> Choice:
    if num_threads is None:
        num_threads = WORKERS
    return Choice("folder", num_threads, reason)


def check_cache(cache: str, device: torch.device) -> None:
    """Raise UserError if ``cache`` is "gpu" but the run does not use a CUDA GPU."""
    if cache == "gpu" and device.type != "cuda":
        raise UserError(
            f"--cache gpu keeps images on a CUDA GPU, but this run uses the device {device.type}; use"
            " --cache ram"
        )


def make_reader(
    choice: Choice, fit: Fit, device: torch.device, log: Log, *, stopping: Stopping = never
) -> Reader:
    """Return a reader of single images.

    A DALI reader puts the images on ``device``, and a Pillow reader on the host. While it waits for an image,
    it raises StoppedError once ``stopping`` returns True.
    """
    if choice.kind == "dali":
        return DaliReader(fit, device, choice.threads, log, stopping=stopping)
    return PillowReader(fit, choice.threads, log, stopping=stopping)


def make_loader(
    choice: Choice,
    sources: Mapping[str, Source],
    plan: Plan,
    device: torch.device,
    config: DataConfig,
    log: Log,
    *,
    stopping: Stopping = never,
) -> Loader:
    """Return the loader of ``choice``; with a cache, fill the cache and return a loader that reads from it.

    ``sources`` maps the names of the domains to their images. ``stopping`` becomes the loader's attribute.
    Raises UserError if the images do not fit into the cache, or if the cache should be on a GPU but the run
    does not use one, and StoppedError if ``stopping`` returns True while the cache is filled.
    """
    skip = config.skip_bad_images
    loader: Loader
    if config.cache != "none":
        check_cache(config.cache, device)
        cache_device = device if config.cache == "gpu" else torch.device("cpu")
        readers = {
            side: make_reader(choice, source.fit, device, log, stopping=stopping)
            for side, source in sources.items()
        }
        cached = cache_images(sources, readers, cache_device, stopping=stopping)
        count = sum(len(images.rows) for images in cached.values())
        total = sum(images.bytes for images in cached.values()) / 2**20
        log(f"--cache {config.cache}: {count} images cached in {total:,.1f} MiB")
        loader = CachedLoader(sources, plan, device, cached, skip_bad_images=skip, log=log)
    elif choice.kind == "dali":
        loader = DaliLoader(sources, plan, device, threads=choice.threads, skip_bad_images=skip, log=log)
    else:
        loader = FolderLoader(sources, plan, device, workers=choice.threads, skip_bad_images=skip, log=log)
    loader.stopping = stopping
    return loader
