"""Which configuration a kernel runs with: a table that ships, then one on disk, then a measurement.

A choice is keyed by GPU, kernel, dtype and shape. It is measured once, on the first call with that key, from
the kernel's short list, and kept in ``$XDG_CACHE_HOME/fastcyclegan/tuned`` (default ~/.cache) by GPU, Triton
and kernel version. Nothing is measured on a CPU, in a dry run, where there is one configuration to choose
from, or inside a CUDA graph capture (a measurement would break it): there the first of the list runs, and a
later call outside a capture may still measure. The order of a sum follows from the tile, so two choices may
differ in the last bits; one choice always gives the same.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ._cache import cache_folder
from ._failures import KernelError, report
from ._launch import Config, chip, dry, listing, report_choice

# Raised whenever a kernel or a list changes so that old choices say nothing about it.
VERSION = 2
SHIPPED = Path(__file__).parent / "tuned"

_chosen: dict[str, Config] = {}


def _file_name(gpu: str) -> str:
    import triton

    return f"{gpu.replace(' ', '_').replace('/', '_')}-triton{triton.__version__}-v{VERSION}.json"


def cache_file(gpu: str) -> Path:
    """Return the file on disk with the choices for the GPU called ``gpu``."""
    return cache_folder("tuned") / _file_name(gpu)


@functools.lru_cache
def _table(path: Path) -> dict[str, dict[str, int]]:
    """Return the choices kept in ``path``, none where it is missing or not such a table."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _remember(path: Path, key: str, config: Config) -> None:
    """Add one choice to the table on disk. A disk that cannot be written costs a measurement in the next
    process, nothing else.
    """
    # Read again: other processes add to it too.
    _table.cache_clear()
    table = {**_table(path), key: _plain(config)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(table, indent=1, sort_keys=True))
        temporary.replace(path)
    except OSError:
        return
    _table.cache_clear()


def _plain(config: Config) -> dict[str, int]:
    return {**config.constants, "num_warps": config.num_warps, "num_stages": config.num_stages}


# What measuring one configuration takes, by count: 6 ms of runs, and those that come before.
SECONDS_A_MEASUREMENT = 0.01


def measure(run: Callable[[], None]) -> float:
    """Return the median time of ``run`` in milliseconds, on the GPU's own clock, with a cold L2 cache."""
    import triton.testing

    # A run and the clearing of the cache before it take a tenth of a millisecond: some sixty runs, whose
    # median is enough to choose by. An iteration times 256 configurations before it can begin.
    return triton.testing.do_bench(run, warmup=1, rep=6, return_mode="median")


def _fastest(kernel: str, configs: Sequence[Config], run: Callable[[Config], None]) -> Config:
    """Return the configuration that runs fastest. One that fails is reported and left out; where all fail,
    the first's error is raised.
    """
    times: dict[Config, float] = {}
    failures: list[tuple[Config, KernelError]] = []
    for config in configs:
        try:
            times[config] = measure(functools.partial(run, config))
        except KernelError as error:
            # Without its frames, which hold what the run had allocated.
            failures.append((config, error.with_traceback(None)))
    if not times:
        raise failures[0][1]
    for config, failure in failures:
        report(failure, f"measuring {kernel}", f"its configuration {_plain(config)} is left out")
    return min(times, key=lambda config: times[config])


def _kept(gpu: str, name: str, configs: Sequence[Config]) -> Config | None:
    """Return the choice called ``name`` that a table holds for the GPU called ``gpu``, if it is one of
    ``configs``.
    """
    by_table = {json.dumps(_plain(c), sort_keys=True): c for c in configs}
    tables = (SHIPPED / _file_name(gpu), cache_file(gpu))
    for path in tables:
        kept = by_table.get(json.dumps(_table(path).get(name), sort_keys=True))
        if kept is not None:
            return kept
    return None


def _chosen_dry(
    name: str, configs: Sequence[Config], device: torch.device, run: Callable[[Config], None]
) -> Config:
    """Return the choice in a dry run: what a table of its chip holds; where none does the first, and who
    lists them hears of all.
    """
    gpu = chip(device).name
    if gpu and (kept := _kept(gpu, name, configs)) is not None:
        return kept
    if listing():
        report_choice(name, len(configs))
        for config in configs[1:]:
            run(config)
    return configs[0]


def choose(
    kernel: str, key: str, configs: Sequence[Config], device: torch.device, run: Callable[[Config], None]
) -> Config:
    """Return the configuration of ``kernel`` for ``key``. ``run`` runs it once with a given one, and may be
    called many times.
    """
    name = f"{kernel} {key}"
    if len(configs) == 1:
        return configs[0]
    if dry():
        return _chosen_dry(name, configs, device, run)
    if device.type != "cuda":
        return configs[0]
    memory = f"{device.index} {name}"
    if memory in _chosen:
        return _chosen[memory]
    gpu = torch.cuda.get_device_name(device)
    kept = _kept(gpu, name, configs)
    if kept is not None:
        _chosen[memory] = kept
        return kept
    # The measurement uses the events, streams and memory of the current device.
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        try:
            fastest = _fastest(kernel, configs, run)
        except torch.cuda.OutOfMemoryError:
            # A full GPU has no room for a measurement; a later call may have.
            return configs[0]
    _chosen[memory] = fastest
    _remember(cache_file(gpu), name, _chosen[memory])
    return _chosen[memory]
