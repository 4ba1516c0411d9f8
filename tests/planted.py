"""Inject failures into kernels, to test how the failures are handled."""

from __future__ import annotations

import ast
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from fastcyclegan.kernels import (
    _failures,
    _fallback,
    _launch,
    every_kernel,  # noqa: F401
)

SOURCE = "def kernel(x_ptr):\n    x = tl.load(x_ptr)\n"
# Errors as raised by Triton 3.6 and 3.7, each with the stage that fails and a pattern of the reported reason.
ERRORS: list[tuple[Callable[[], Exception], str, str]] = [
    (
        lambda: triton.CompilationError(SOURCE, ast.parse(SOURCE).body[0], "a tensor of no shape"),
        "compile",
        "CompilationError: a tensor of no",
    ),
    (lambda: RuntimeError("PassManager::run failed"), "compile", "RuntimeError: PassManager::run failed"),
    (
        lambda: PTXASError("Internal Triton PTX codegen error\nmore"),
        "compile",
        "PTXASError: Internal Triton PTX codegen error",
    ),
    (
        lambda: RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        "compile",
        "Failed to find C compiler",
    ),
    (
        lambda: subprocess.CalledProcessError(1, ["gcc"]),
        "compile",
        "CalledProcessError: Command .* returned non-zero exit status 1",
    ),
    (
        lambda: OutOfResources(300000, 232448, "shared memory"),
        "launch",
        "OutOfResources: out of resource: shared memory, Required: 300000",
    ),
    (
        lambda: RuntimeError("Triton Error [CUDA]: invalid argument"),
        "launch",
        r"RuntimeError: Triton Error \[CUDA\]: invalid argument",
    ),
    (lambda: OSError("libcuda.so.1: cannot open shared object file"), "launch", "OSError: libcuda.so.1"),
]


def clear_failures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_fallback, "_fallen", set())
    patch.setattr(_failures, "_reported", set())


class Failing:
    """Wraps ``kernel`` so that every launch from number ``first`` on raises ``error()``."""

    def __init__(self, kernel: Any, error: Callable[[], BaseException], first: int = 1) -> None:
        self.kernel, self.error, self.first, self.launches = kernel, error, first, 0

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **constants: Any) -> Any:
            self.launches += 1
            if self.launches >= self.first:
                raise self.error()
            return self.kernel[grid](*args, **constants)

        return launch


def plant(
    patch: pytest.MonkeyPatch, kernel: str, error: Callable[[], BaseException] = ERRORS[0][0], first: int = 1
) -> Failing:
    failing = Failing(_launch.REGISTRY[kernel], error, first)
    patch.setitem(_launch.REGISTRY, kernel, failing)
    return failing


@dataclass
class LaunchRecorder:
    """Records which kernels are launched."""

    kernels: list[str] = field(default_factory=list)
    dry: bool = False
    all_configs = False
    capability = 90

    def launched(self, launch: _launch.Launch) -> None:
        self.kernels.append(launch.kernel)


def failure_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return the warnings that explain how to reproduce a failure."""
    return [
        str(w.message) for w in caught if w.category is RuntimeWarning and "show_failure" in str(w.message)
    ]
