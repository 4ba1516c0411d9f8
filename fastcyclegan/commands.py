"""The console commands, such as ``fastcyclegan-train``. Importing this module imports no other package.

So a command can take Ctrl-C, and tell of a missing package in one line, before it imports torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from fastcyclegan.errors import escape_on_streams, print_line
from fastcyclegan.training.signals import nothing_to_save

# The pip names of the packages that the commands import.
PACKAGES = {name: name for name in ("torch", "triton", "numpy", "tyro", "rich", "matplotlib", "pytest")} | {
    "PIL": "pillow"
}


def function(module: str, name: str) -> Callable[[], Any]:
    """Import ``module`` and return its function ``name``.

    If a package is missing, print its name and how to install it, and exit with code 2.
    """
    escape_on_streams()
    try:
        with nothing_to_save():
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as missing:
        package, _, _ = str(missing.name).partition(".")
        if package not in PACKAGES:
            raise
        print_line(
            f"error: this command needs the package {package}: python -m pip install {PACKAGES[package]}",
            sys.stderr,
        )
        sys.exit(2)


def train() -> int:
    """Run ``fastcyclegan-train`` and return its exit code."""
    return int(function("fastcyclegan.cli", "train")())


def translate() -> int:
    """Run ``fastcyclegan-translate`` and return its exit code."""
    return int(function("fastcyclegan.cli", "translate")())


def inspect_checkpoint() -> int:
    """Run ``fastcyclegan-inspect-checkpoint`` and return its exit code."""
    return int(function("fastcyclegan.cli", "inspect_checkpoint")())


def download_dataset() -> int:
    """Run ``fastcyclegan-download-dataset`` and return its exit code."""
    return int(function("fastcyclegan.cli", "download_dataset")())


def check_dataset() -> int:
    """Run ``fastcyclegan-check-dataset`` and return its exit code."""
    return int(function("fastcyclegan.cli", "check_dataset")())


def compile_kernels() -> int:
    """Run ``fastcyclegan-compile-kernels`` and return its exit code."""
    return int(function("fastcyclegan.kernel_gate.command", "main")())
