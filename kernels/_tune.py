"""Choose the configuration of a kernel: from a shipped table, from a table on disk, or by measurement.

The key of a choice consists of GPU, kernel, dtype and shape. On the first call with a key, the kernel's
candidate configurations are measured once. The choice is stored in ``$XDG_CACHE_HOME/fastcyclegan/tuned``
(default: ~/.cache), in a file for this GPU, Triton version and kernel version. Nothing is measured on a CPU,
in a dry run, if there is only one candidate, or inside a CUDA graph capture, which a measurement would break.
In these cases the first candidate runs, and a later call outside a capture can still measure. The order of a
sum depends on the tile, so the results of two choices may differ in the last bits. The same choice always
gives the same result.
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

# Incremented whenever a change to a kernel or to its candidates makes old choices invalid.
VERSION = 2
SHIPPED = Path(__file__).parent / "tuned"

_chosen: dict[str, Config] = {}


def _file_name(gpu: str) -> str:
    import triton

    return f"{gpu.replace(' ', '_').replace('/', '_')}-triton{triton.__version__}-v{VERSION}.json"


def cache_file(gpu: str) -> Path:
    """Return the path of the file in the cache folder that holds the choices for the GPU named ``gpu``."""
    return cache_folder("tuned") / _file_name(gpu)


@functools.lru_cache
def _table(path: Path) -> dict[str, dict[str, int]]:
    """Return the choices stored in ``path``, or {} if the file is missing or contains no table."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _store_choice(path: Path, key: str, config: Config) -> None:
    """Add one choice to the table on disk.

    If the disk cannot be written, the only cost is another measurement in the next process.
    """
    # Read the file again, because other processes add to it too.
    _table.cache_clear()
    table = {**_table(path), key: _as_dict(config)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(table, indent=1, sort_keys=True))
        temporary.replace(path)
    except OSError:
        return
    _table.cache_clear()


def _as_dict(config: Config) -> dict[str, int]:
    return {**config.constants, "num_warps": config.num_warps, "num_stages": config.num_stages}


# The estimated time to measure one configuration: 6 ms of timed runs, and the runs before them.
SECONDS_PER_MEASUREMENT = 0.01


def measure(run: Callable[[], None]) -> float:
    """Return the median time of ``run`` in milliseconds, by the GPU's clock and with a cold L2 cache."""
    import triton.testing

    # A run takes a tenth of a millisecond, including clearing the cache before it. That allows about sixty
    # runs, whose median is good enough for a choice. The time is short because 256 configurations have to be
    # measured before an iteration can begin.
    return triton.testing.do_bench(run, warmup=1, rep=6, return_mode="median")


def _fastest(kernel: str, configs: Sequence[Config], run: Callable[[Config], None]) -> Config:
    """Return the configuration that runs fastest.

    A configuration that fails is reported and skipped. If all fail, the first error is raised.
    """
    times: dict[Config, float] = {}
    failures: list[tuple[Config, KernelError]] = []
    for config in configs:
        try:
            times[config] = measure(functools.partial(run, config))
        except KernelError as error:
            # Drop the traceback, whose frames keep the run's allocations alive.
            failures.append((config, error.with_traceback(None)))
    if not times:
        raise failures[0][1]
    for config, failure in failures:
        report(failure, f"measuring {kernel}", f"configuration {_as_dict(config)} is skipped")
    return min(times, key=lambda config: times[config])


def _stored_choice(gpu: str, name: str, configs: Sequence[Config]) -> Config | None:
    """Return the configuration stored under ``name`` in the tables for the GPU named ``gpu``.

    Returns None if no table contains ``name``, or if the stored configuration is not one of ``configs``.
    """
    by_entry = {json.dumps(_as_dict(c), sort_keys=True): c for c in configs}
    tables = (SHIPPED / _file_name(gpu), cache_file(gpu))
    for path in tables:
        choice = by_entry.get(json.dumps(_table(path).get(name), sort_keys=True))
        if choice is not None:
            return choice
    return None


def _choose_dry(
    name: str, configs: Sequence[Config], device: torch.device, run: Callable[[Config], None]
) -> Config:
    """Return the configuration to use in a dry run.

    This is the one stored in a table for the chip of the dry run, or the first one if there is no such entry.
    In the latter case, a dry run that lists configurations receives all of them.
    """
    gpu = chip(device).name
    if gpu and (choice := _stored_choice(gpu, name, configs)) is not None:
        return choice
    if listing():
        report_choice(name, len(configs))
        for config in configs[1:]:
            run(config)
    return configs[0]


def choose(
    kernel: str, key: str, configs: Sequence[Config], device: torch.device, run: Callable[[Config], None]
) -> Config:
    """Return the configuration with which to launch ``kernel`` for ``key``; see the module docstring.

    ``run`` launches the kernel once with a given configuration, and may be called many times.
    """
    name = f"{kernel} {key}"
    if len(configs) == 1:
        return configs[0]
    if dry():
        return _choose_dry(name, configs, device, run)
    if device.type != "cuda":
        return configs[0]
    choice_key = f"{device.index} {name}"
    if choice_key in _chosen:
        return _chosen[choice_key]
    gpu = torch.cuda.get_device_name(device)
    choice = _stored_choice(gpu, name, configs)
    if choice is not None:
        _chosen[choice_key] = choice
        return choice
    # The measurement uses the events, streams and memory of the current device.
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            return configs[0]
        try:
            fastest = _fastest(kernel, configs, run)
        except torch.cuda.OutOfMemoryError:
            # There is too little free memory for a measurement. A later call may find enough.
            return configs[0]
    _chosen[choice_key] = fastest
    _store_choice(cache_file(gpu), name, _chosen[choice_key])
    return _chosen[choice_key]
