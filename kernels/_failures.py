"""Classify and report the errors that kernels raise.

After some of these errors, PyTorch can compute the result instead. This module does not import Triton.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from ._records import write_record

# After these errors the process cannot launch anything: every later CUDA call fails with the same error.
_BROKEN = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|unspecified launch failure|device-side"
    r" assert|hardware stack error"
    r"|invalid (address space|program counter)|uncorrectable ECC|launch timed out",
    re.IGNORECASE,
)
# Triton's error begins like this if the driver rejects a descriptor (backends/nvidia/driver.c, 3.6 and 3.7).
REFUSED = "Failed to create tensor map descriptor"
# Classes of errors that are raised during compilation. They are given by name, so that Triton need not be
# imported.
_COMPILING = {"CompilationError", "PTXASError", "CalledProcessError"}
_COMPILING_TEXT = re.compile(r"PassManager::run failed|C compiler|LLVM|MLIR")


class KernelError(RuntimeError):
    """A Triton kernel could not be compiled or launched.

    The original error is chained as the cause. The device and all results are unaffected.

    ``kernel`` is the kernel's name. ``reason`` names the step that failed, the GPU and the cause, as the
    beginning of a sentence. ``again`` is a sentence with the command that reproduces the failure, or "" if no
    record of the failure could be written.
    """

    def __init__(self, kernel: str, reason: str, again: str) -> None:
        super().__init__(kernel, reason, again)
        self.kernel, self.reason, self.again = kernel, reason, again

    def __str__(self) -> str:
        return ". ".join(filter(None, (self.reason, self.again)))


def is_device_fault(error: BaseException | str) -> bool:
    """Return whether ``error`` is a device fault after which the process can no longer use the device."""
    if isinstance(error, str):
        return bool(_BROKEN.search(error))
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if _BROKEN.search(str(current)):
            return True
        seen.append(current)
        current = current.__context__ if current.__cause__ is None else current.__cause__
    return False


def is_external_error(error: BaseException) -> bool:
    """Return whether ``error`` comes from the device or its memory rather than from the kernel.

    PyTorch's operators would run into such an error too, so it must be raised.
    """
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)):
        return True
    if "out of memory" in str(error):
        return True
    return is_device_fault(error)


def raise_device_error(device: torch.device, error: BaseException) -> None:
    """If the device can no longer be used, raise the error that it reports, chained to ``error``.

    All results computed so far are then suspect. Inside the capture of a graph, this function does nothing.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as fault:
        raise fault from error


def cause_of(error: BaseException) -> str:
    """Return the class of ``error`` and the line of its message that states the problem.

    The message of a Triton compilation error begins with source code, so the compiler's own message is used
    instead.
    """
    kind = type(error).__name__
    message = getattr(error, "error_message", None)
    if not message and kind == "CompilationError" and error.__cause__ is not None:
        return cause_of(error.__cause__)
    text = str(message if message else error)
    for line in text.splitlines():
        if line.strip():
            return f"{kind}: {line.strip()}"
    return kind


def _is_compile_error(error: BaseException) -> bool:
    """Return whether ``error`` was raised while the kernel was being compiled."""
    for kind in type(error).__mro__:
        if kind.__name__ in _COMPILING:
            return True
    return _COMPILING_TEXT.search(str(error)) is not None


def kernel_error(launch: Any, device: torch.device, capability: int, error: BaseException) -> KernelError:
    """Record a ``launch`` that failed with ``error``, and return the KernelError to raise for it."""
    gpu = f"{device.type}, interpreted"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
    verb = "compile" if _is_compile_error(error) else "launch"
    reason = f"kernel {launch.kernel} does not {verb} on {gpu} ({cause_of(error)})"
    again = write_record(launch, gpu, capability, error)
    if again:
        again = f"To reproduce it: {again}"
    return KernelError(launch.kernel, reason, again)


# The kernel, reason and consequence of each warning issued so far.
_reported: set[tuple[str, str, str]] = set()


def report(error: KernelError, op: str, consequence: str) -> None:
    """Warn the user that ``error`` occurred in ``op``, and state the ``consequence``.

    Each combination of kernel, reason and consequence is reported once per process.
    """
    if (error.kernel, error.reason, consequence) in _reported:
        return
    text = ". ".join(filter(None, (f"{op}: {error.reason}; {consequence}", error.again)))
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    # Not reached if warnings are turned into errors, so the next call raises again.
    _reported.add((error.kernel, error.reason, consequence))
