"""What the tests of the GPU suite share: a machine that is none, stand-ins for Python, and who still runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABOUT = {
    "hardware": "Test/GPU",
    "device": "cuda",
    "torch": "2.13",
    "triton": "3.7",
    "stage": "1: correctness",
}


def stand_in(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell ``script`` be the Python that parts start."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def running(command: str) -> bool:
    return subprocess.run(["pgrep", "-xf", command], capture_output=True, check=False).stdout != b""
