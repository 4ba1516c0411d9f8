"""Choose the configuration of a kernel: from a shipped table, from a table on disk, or by measurement.

A choice is keyed by GPU, kernel, dtype and shape. The configurations in the kernel's short list are measured
once, on the first call with that key, and the choice is stored in ``$XDG_CACHE_HOME/fastcyclegan/tuned``
(default: ~/.cache) by GPU, Triton and kernel version. Nothing is measured on a CPU, in a dry run, if there is
only one configuration, or inside a CUDA graph capture, which a measurement would break. The first
configuration of the list runs in these cases, and a later call outside a capture can still measure. The order
of a sum depends on the tile, so two choices may differ in the last bits; one choice always gives the same
result.
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

# Incremented whenever a change to a kernel or to a list makes old choices invalid.
VERSION = 2
SHIPPED = Path(__file__).parent / "tuned"

_chosen: dict[str, Config] = {}


def _file_name(gpu: str) -> str:
    import triton

    return f"{gpu.replace(' ', '_').replace('/', '_')}-triton{triton.__version__}-v{VERSION}.json"


def cache_file(gpu: str) -> Path:
    """Return the file on disk with the choices for the GPU named ``gpu``."""
    return cache_folder("tuned") / _file_name(gpu)


@functools.lru_cache
def _table(path: Path) -> dict[str, dict[str, int]]:
    """Return the choices stored in ``path``, empty if it is missing or is not a table of choices."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
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


# The estimated time to measure one configuration: 6 ms of runs, and the runs before them.
SECONDS_PER_MEASUREMENT = 0.01


def measure(run: Callable[[], None]) -> float:
    """Return the median time of ``run`` in milliseconds, by the GPU's clock and with a cold L2 cache."""
    import triton.testing

    # A run and clearing the cache before it take a tenth of a millisecond. That allows about sixty runs,
    # whose median is enough to choose by. Before an iteration can begin, 256 configurations have to be
    # timed.
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
            # Without its frames, which keep alive what the run had allocated.
            failures.append((config, error.with_traceback(None)))
    if not times:
        raise failures[0][1]
    for config, failure in failures:
        report(failure, f"measuring {kernel}", f"its configuration {_as_dict(config)} is skipped")
    return min(times, key=lambda config: times[config])


def _stored_choice(gpu: str, name: str, configs: Sequence[Config]) -> Config | None:
    """Return the choice named ``name`` from the tables for the GPU named ``gpu``.

    Returns None if no table has it, or if it is not one of ``configs``.
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
    """Return the choice in a dry run: the one in a table for its chip, otherwise the first configuration.

    If no table has it, a dry run that lists configurations receives all of them.
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
    """Return the configuration of ``kernel`` for ``key``.

    ``run`` runs the kernel once with a given configuration, and may be called many times.
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
            # A full GPU has no memory for a measurement; it may have some in a later call.
            return configs[0]
    _chosen[choice_key] = fastest
    _store_choice(cache_file(gpu), name, _chosen[choice_key])
    return _chosen[choice_key]
