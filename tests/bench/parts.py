"""Helpers for the tests of the GPU suite.

They are the description of a fake machine, a stand-in for Python, and a check for running processes.
"""

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
    """Write the shell ``script`` to ``path``, and make parts of the suite start it instead of Python."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


def running(command: str) -> bool:
    """Return whether a process with exactly this command line is running."""
    return subprocess.run(["pgrep", "-xf", command], capture_output=True, check=False).stdout != b""
