"""What every bench shares: the device that it runs on, a timer that waits for it, and a line that names the hardware."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What a bench may count, its unit, and how many make one.
UNITS = {"pictures": ("images/s", 1.0), "bytes": ("GB/s", 1e9), "flops": ("GFLOP/s", 1e9)}
STARTED = pytest.StashKey[float]()


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench-budget", type=float, metavar="SECONDS", help="skip the benches that are left once this much time has passed")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()


@pytest.fixture(autouse=True)
def _budget(request: pytest.FixtureRequest) -> None:
    budget = request.config.getoption("--bench-budget")
    if budget is not None and time.monotonic() - request.config.stash[STARTED] > budget:
        pytest.skip(f"the budget of {budget:.0f} s is used up")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the benches that count pictures, bytes or operations measured in those, beside the first of their group."""
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    first: dict[str, float] = {}
    for bench in session.benchmarks if session is not None else ():
        counted = next((unit for unit in UNITS if unit in bench.extra_info), None)
        if counted is None:
            continue
        unit, scale = UNITS[counted]
        amount = bench.extra_info[counted]
        if bench.group not in first:
            terminalreporter.write_line(f"\n{bench.group}; {hardware()}")
        amount /= scale
        rate = amount / bench.stats.median
        ratio = rate / first.setdefault(bench.group, rate)
        spread = f"{amount / bench.stats.max:,.0f} to {amount / bench.stats.min:,.0f} in {len(bench.stats.data)} rounds"
        terminalreporter.write_line(f"  {bench.extra_info['provider']:<20} {rate:>8,.0f} {unit}  {ratio:5.2f}x   ({spread})")
