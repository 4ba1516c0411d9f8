"""What every bench shares: the device that it runs on, a timer that waits for it, and a line that names the hardware."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def hardware() -> str:
    """Return the processor or GPU and the versions that a figure belongs to."""
    if DEVICE == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def pytest_report_header() -> str:
    return f"bench: {DEVICE}, {hardware()}"


@pytest.fixture
def device() -> str:
    return DEVICE


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the benches that count pictures measured in pictures a second, beside the first of their group."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    first: dict[str, float] = {}
    for bench in session.benchmarks if session is not None else ():
        pictures = bench.extra_info.get("pictures")
        if pictures is None:
            continue
        if bench.group not in first:
            terminalreporter.write_line(f"\n{bench.group}; {hardware()}")
        rate = pictures / bench.stats.median
        ratio = rate / first.setdefault(bench.group, rate)
        spread = f"{pictures / bench.stats.max:,.0f} to {pictures / bench.stats.min:,.0f} in {len(bench.stats.data)} rounds"
        terminalreporter.write_line(f"  {bench.extra_info['provider']:<20} {rate:>8,.0f} images/s  {ratio:5.2f}x   ({spread})")
