"""Errors of a kernel: which of them PyTorch can stand in for, and how they are named. Imports no Triton."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch

from ._records import write_record

# After these the process can launch nothing any more: CUDA answers every later call with the same error.
_BROKEN = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|unspecified launch failure|device-side"
    r" assert|hardware stack error"
    r"|invalid (address space|program counter)|uncorrectable ECC|launch timed out",
    re.IGNORECASE,
)
# How Triton's error begins where the driver does not take a descriptor (backends/nvidia/driver.c, in 3.6 and
# 3.7).
REFUSED = "Failed to create tensor map descriptor"
# Errors before there is a program to launch, by name: Triton is not imported for them.
_COMPILING = {"CompilationError", "PTXASError", "CalledProcessError"}
_COMPILING_TEXT = re.compile(r"PassManager::run failed|C compiler|LLVM|MLIR")


class KernelError(RuntimeError):
    """A Triton kernel that cannot be compiled or launched; its cause is chained. The device and all results
    are as before.

    ``kernel``: its name. ``reason``: what failed, where and why, as the beginning of a sentence. ``again``:
    the sentence that tells how to see it again, "" where nothing could be written down.
    """

    def __init__(self, kernel: str, reason: str, again: str) -> None:
        super().__init__(kernel, reason, again)
        self.kernel, self.reason, self.again = kernel, reason, again

    def __str__(self) -> str:
        return ". ".join(filter(None, (self.reason, self.again)))


def breaks_the_device(error: BaseException | str) -> bool:
    """Return whether ``error`` is a fault of the device after which its process is of no more use."""
    if isinstance(error, str):
        return bool(_BROKEN.search(error))
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        if _BROKEN.search(str(each)):
            return True
        seen.append(each)
        each = each.__context__ if each.__cause__ is None else each.__cause__
    return False


def is_no_kernels_fault(error: BaseException) -> bool:
    """Return whether ``error`` is of the device or of its memory, which PyTorch's operators would meet too:
    it must be raised.
    """
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)):
        return True
    if "out of memory" in str(error):
        return True
    return breaks_the_device(error)


def ask_device(device: torch.device, error: BaseException) -> None:
    """Raise what the device reports, from ``error``, where it is dead; all that was computed is then suspect.
    Not inside a capture.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    try:
        torch.cuda.synchronize(device)
    except Exception as fault:
        raise fault from error


def cause_of(error: BaseException) -> str:
    """Return the line that tells what is wrong: of a compiler's message, which begins with source code, its
    own words.
    """
    kind = type(error).__name__
    message = getattr(error, "error_message", None)
    if not message and kind == "CompilationError" and error.__cause__ is not None:
        return cause_of(error.__cause__)
    words = str(message if message else error)
    for line in words.splitlines():
        if line.strip():
            return f"{kind}: {line.strip()}"
    return kind


def _is_compilers(error: BaseException) -> bool:
    """Return whether ``error`` came before there was a program to launch."""
    for kind in type(error).__mro__:
        if kind.__name__ in _COMPILING:
            return True
    return _COMPILING_TEXT.search(str(error)) is not None


def kernel_error(launch: Any, device: torch.device, capability: int, error: BaseException) -> KernelError:
    """Return what to raise for a ``launch`` that failed with ``error``, and write the launch down."""
    gpu = f"{device.type}, interpreted"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
    verb = "compile" if _is_compilers(error) else "launch"
    reason = f"kernel {launch.kernel} does not {verb} on {gpu} ({cause_of(error)})"
    again = write_record(launch, gpu, capability, error)
    if again:
        again = f"To see it again: {again}"
    return KernelError(launch.kernel, reason, again)


# What was reported.
_reported: set[tuple[str, str, str]] = set()


def report(error: KernelError, op: str, consequence: str) -> None:
    """Warn, once a process for each kernel, reason and consequence, that ``op`` met ``error``, and of what
    follows.
    """
    if (error.kernel, error.reason, consequence) in _reported:
        return
    text = ". ".join(filter(None, (f"{op}: {error.reason}; {consequence}", error.again)))
    warnings.warn(text, RuntimeWarning, stacklevel=3)
    # Not where the warning is an error: the next call must meet it again.
    _reported.add((error.kernel, error.reason, consequence))
