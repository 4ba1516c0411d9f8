"""What every bench shares: the device that it runs on, a timer that waits for it, and a line that names the hardware."""

from __future__ import annotations

import platform
from pathlib import Path

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
