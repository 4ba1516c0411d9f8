"""What a figure must carry: the hardware, driver, versions, commit and date, and the clocks and temperatures
while it was measured.

Clocks and temperatures are read where the machine shows them, and never set.
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


def logged_by(*command: str) -> str:
    """Return what ``command`` prints, "unknown" where it does not exist or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    logged = done.stdout.strip()
    if done.returncode != 0 or not logged:
        return "unknown"
    return logged


def _from_cpuinfo(field: str) -> list[str]:
    """Return a field of every core where the system shows it."""
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
    """Return the GPU, or the processor and its threads, that a figure belongs to."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def source_digest() -> str:
    """Return a digest of the Python files of package, kernels and benches: it names the source where a
    checkout travels without history.
    """
    digest = hashlib.sha256()
    for folder in ("fastcyclegan", "kernels", "bench"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, str]:
    """Return what every result carries."""
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
        driver = logged_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        about["driver"] = driver.splitlines()[0]
        about["cuda"] = str(torch.version.cuda)
    return about


def _commit() -> str:
    commit = logged_by("git", "rev-parse", "--short", "HEAD")
    # Nothing is printed of a clean checkout.
    if logged_by("git", "status", "--porcelain", "--untracked-files=no") != "unknown":
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
    """Return the clocks, temperatures and load of this moment, as far as the machine shows them."""
    if DEVICE == "cuda":
        return _conditions_of_the_gpu()
    found: dict[str, str] = {}
    clocks = _from_cpuinfo("cpu MHz")
    if clocks:
        found["MHz"] = f"{max(map(float, clocks)):.0f}"
    with contextlib.suppress(OSError, ValueError):
        zones = [int(zone.read_text()) for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
        if zones:
            found["degrees C"] = f"{max(zones) / 1000:.0f}"
    with contextlib.suppress(OSError):
        found["load"] = f"{os.getloadavg()[0]:.1f}"
    return found


def _conditions_of_the_gpu() -> dict[str, str]:
    fields = "clocks.sm,clocks.mem,temperature.gpu,power.draw,clocks_throttle_reasons.active"
    logged = logged_by("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    values = logged.splitlines()[0].split(", ")
    if len(values) <= 1:
        return {}
    return dict(zip(fields.split(","), values, strict=False))


class PeakMemory:
    """The most memory held inside the block beyond what was held before: ``bytes``, None where that cannot be
    seen.

    On a GPU what torch has reserved there, beyond what it had when this was made: CUDA graphs keep their
    memory between runs. On Linux the resident memory of this process, by the kernel's own high-water mark,
    beyond what it was at the block's beginning.
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
    """Return a field of this process's status in bytes, None where the system has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def held_bytes(value: Any) -> int:
    """Return the bytes of the tensors in nested dicts and lists, each storage once."""
    found: dict[int, int] = {}

    def walk(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            for each in item.values():
                walk(each)
        elif isinstance(item, (list, tuple)):
            for each in item:
                walk(each)

    walk(value)
    return sum(found.values())
