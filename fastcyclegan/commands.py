"""The console commands, such as ``fastcyclegan-train``. Importing this module imports no other package."""

from __future__ import annotations

from fastcyclegan.command_line.late_import import function as function


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


def make_aligned() -> int:
    """Run ``fastcyclegan-make-aligned`` and return its exit code."""
    return int(function("fastcyclegan.command_line.make_aligned", "make_aligned")())


def evaluate() -> int:
    """Run ``fastcyclegan-evaluate`` and return its exit code."""
    return int(function("fastcyclegan.command_line.evaluate", "evaluate")())


def compile_kernels() -> int:
    """Run ``fastcyclegan-compile-kernels`` and return its exit code."""
    return int(function("fastcyclegan.kernel_gate.command", "main")())
