"""Describe the machine on which figures are measured, and measure peak memory.

The description includes the hardware, driver, versions, commit and date, and the clocks and temperatures
during the measurement. Clocks and temperatures are read if the machine exposes them, and never changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def output_of(*command: str) -> str:
    """Return the output of ``command``, or "unknown" if it does not exist, fails or prints nothing."""
    try:
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    output = process.stdout.strip()
    if process.returncode != 0 or not output:
        return "unknown"
    return output


def _from_cpuinfo(field: str) -> list[str]:
    """Return the values of ``field`` for every core, or an empty list if there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    lines = cpuinfo.read_text().splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]


def _processor() -> str:
    models = _from_cpuinfo("model name")
    if models and models[0]:
        return models[0]
    processor = platform.processor()
    if processor:
        return processor
    return platform.machine()


def hardware() -> str:
    """Return the name of the GPU, or of the processor with its number of threads."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def source_digest() -> str:
    """Return a digest of the Python files in the package, the kernels and the benches.

    It identifies the source if a checkout is copied without its history.
    """
    digest = hashlib.sha256()
    for folder in ("fastcyclegan", "kernels", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, str]:
    """Return the description of the machine and the source that is stored with every result."""
    about = {
        "hardware": hardware(),
        "device": DEVICE,
        "torch": torch.__version__,
        "triton": _version_of_triton(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
        "source": source_digest(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if DEVICE == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        about["driver"] = driver.splitlines()[0]
        about["cuda"] = str(torch.version.cuda)
    return about


def _commit() -> str:
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    # For a clean checkout git prints nothing, which ``output_of`` returns as "unknown".
    if output_of("git", "status", "--porcelain", "--untracked-files=no") != "unknown":
        commit += " with changes"
    return commit


def _version_of_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "none"
    try:
        return version("triton")
    except PackageNotFoundError:
        return "unknown"


def conditions() -> dict[str, str]:
    """Return the current clocks, temperatures and load, as far as the machine exposes them."""
    if DEVICE == "cuda":
        return _conditions_of_the_gpu()
    readings: dict[str, str] = {}
    clocks = _from_cpuinfo("cpu MHz")
    if clocks:
        readings["MHz"] = f"{max(map(float, clocks)):.0f}"
    with contextlib.suppress(OSError, ValueError):
        zones = [int(zone.read_text()) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
        if zones:
            readings["degrees C"] = f"{max(zones) / 1000:.0f}"
    with contextlib.suppress(OSError):
        readings["load"] = f"{os.getloadavg()[0]:.1f}"
    return readings


def _conditions_of_the_gpu() -> dict[str, str]:
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    output = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    values = output.splitlines()[0].split(", ")
    if len(values) <= 1:
        return {}
    return dict(zip(fields.split(","), values, strict=False))


class PeakMemory:
    """Context manager that measures the peak memory of its block, beyond the memory in use before it.

    ``bytes`` is None if it cannot be measured. On a GPU it is the peak of the memory that torch reserves,
    minus what it had reserved when this object was created, because CUDA graphs keep their memory between
    runs. On Linux without a GPU it is the high-water mark of the resident memory of this process, minus the
    resident memory at the start of the block.
    """

    bytes: int | None = None

    def __init__(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            self.before: int | None = torch.cuda.memory_reserved()

    def __enter__(self) -> PeakMemory:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return self
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.before = _status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
            assert self.before is not None
            self.bytes = torch.cuda.max_memory_reserved() - self.before
            return
        peak = _status("VmHWM")
        if self.before is not None and peak is not None:
            self.bytes = peak - self.before


def _status(field: str) -> int | None:
    """Return ``field`` of this process's /proc status in bytes, or None if the system does not have it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def tensor_bytes(value: Any) -> int:
    """Return the size in bytes of all tensors in nested dicts, lists and tuples.

    Each storage is counted once.
    """
    sizes: dict[int, int] = {}

    def walk(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            sizes[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            for each in item.values():
                walk(each)
        elif isinstance(item, (list, tuple)):
            for each in item:
                walk(each)

    walk(value)
    return sum(sizes.values())
