"""What serves a tensor: the choice between the Triton kernels and plain PyTorch. Imports torch alone, Triton
only when it is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

IMPLS = ("auto", "triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_as_on_gpu = False


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Inside the block impl="auto" serves the CPU as it would an NVIDIA GPU, where the kernels are
    interpreted or run dry.
    """
    global _as_on_gpu
    before, _as_on_gpu = _as_on_gpu, True
    try:
        yield
    finally:
        _as_on_gpu = before


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def check_impl(impl: str, device: torch.device | None = None) -> None:
    """Raise ValueError for an ``impl`` that is unknown, that this installation cannot have, or that cannot
    serve ``device`` if given.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be auto, triton or reference, got {impl!r}")
    if impl != "triton":
        return
    if not _has_triton():
        raise ValueError(
            "impl='triton' needs the package triton, which is not installed (it exists for Linux); use"
            " impl='auto'"
        )
    if device is None:
        return
    reason = why_not_triton(device.type, device.index)
    if reason:
        raise ValueError(f"impl='triton' {reason}; use impl='auto' or impl='reference'")


def why_not_triton(device_type: str, index: int | None) -> str:
    """Return "" where the kernels run on that device, else why not."""
    if not _has_triton():
        return "needs the package triton, which is not installed"
    if device_type == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability(index) < (8, 0):
            return f"needs a GPU of compute capability 8.0 or later, got {torch.cuda.get_device_name(index)}"
        return ""
    from ._launch import dry, interpreted

    if device_type == "cpu" and (interpreted() or dry()):
        return ""
    return (
        f"needs an NVIDIA GPU, got {device_type} (TRITON_INTERPRET=1 in the environment interprets kernels on"
        " the CPU)"
    )


# While torch.compile traces these are asked, not traced: the answers belong to the installation and the
# device, and cannot change (and torch 2.11's compiler refuses find_spec). This is all that
# torch.compiler.assume_constant_result does, which imports the whole compiler for it (2.5 s).
_has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_transformed() -> bool:
    """Whether torch.func (grad, vmap, jvp ...) or forward-mode differentiation is at work, which the kernels'
    operators do not know.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


# Dynamo enters the transforms that it traces, and guards their stack: asked while it traces, the answer holds
# for what it traces.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def resolve_impl(op: str, impl: str, x: Tensor) -> Literal["triton", "reference"]:
    """Return what computes ``op`` on ``x``: auto is Triton on an NVIDIA GPU for the dtypes that it has, else
    the reference.

    Under torch.func's transforms and in forward-mode differentiation auto is the reference. Raises ValueError
    where an explicit impl="triton" cannot serve the device or the transform, and TypeError where it cannot
    serve the dtype.
    """
    check_impl(impl)
    if impl != "reference" and _is_transformed():
        if impl == "triton":
            raise ValueError(
                f"{op}: impl='triton' does not go through torch.func's transforms or forward-mode"
                " differentiation; use impl='auto'"
            )
        return "reference"
    if impl == "auto":
        nvidia = x.device.type == "cuda" and torch.version.hip is None
        if not (nvidia or _as_on_gpu) or x.dtype not in DTYPES:
            return "reference"
        return "reference" if why_not_triton(x.device.type, x.device.index) else "triton"
    if impl == "reference":
        return "reference"
    reason = why_not_triton(x.device.type, x.device.index)
    if reason:
        raise ValueError(f"{op}: impl='triton' {reason}; use impl='auto' or impl='reference'")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{op}: impl='triton' takes float32, bfloat16 or float16, got {x.dtype}; use impl='reference'"
        )
    return "triton"
