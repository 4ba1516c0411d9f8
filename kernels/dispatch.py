"""Choose between the Triton kernels, the C++ kernels and plain PyTorch for a tensor.

This module imports only torch; Triton and the C++ library are loaded when they are first needed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

IMPLS = ("auto", "cpp", "triton", "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPP_DTYPES = (torch.float32, torch.bfloat16)
Impl = Literal["cpp", "triton", "reference"]

_as_on_gpu = False


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Make impl="auto" treat the CPU like an NVIDIA GPU inside the block.

    The kernels are then interpreted, or only listed in a dry run.
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
    """Raise ValueError if ``impl`` is unknown, is not installed, or does not run on ``device``."""
    if impl not in IMPLS:
        raise ValueError(f"impl must be auto, cpp, triton or reference, got {impl!r}")
    if impl == "cpp" and device is not None:
        reason = _why_not_cpp(device.type)
        if reason:
            raise ValueError(f"impl='cpp' {reason}; use impl='auto' or impl='reference'")
    if impl != "triton":
        return
    if not _has_triton():
        raise ValueError(
            "impl='triton' needs the package triton, which is not installed (it is available for Linux); use"
            " impl='auto'"
        )
    if device is None:
        return
    reason = why_not_triton(device.type, device.index)
    if reason:
        raise ValueError(f"impl='triton' {reason}; use impl='auto' or impl='reference'")


def why_not_triton(device_type: str, index: int | None) -> str:
    """Return why the kernels cannot run on the device, or "" if they can."""
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
        f"needs an NVIDIA GPU, got {device_type} (to interpret the kernels on the CPU, set TRITON_INTERPRET=1"
        " in the environment)"
    )


def _why_not_cpp(device_type: str) -> str:
    """Return why the C++ kernels cannot run on the device, or "" if they can."""
    from .cpu.library import why_not_cpp

    return why_not_cpp() if device_type == "cpu" else f"needs a CPU, got {device_type}"


_was_reported = False


def _can_use_cpp() -> bool:
    """Return whether the C++ kernels can be used. If only a compiler is missing, warn once."""
    from .cpu.choice import is_measured

    global _was_reported
    if not is_measured():
        return False
    reason = _why_not_cpp("cpu")
    if reason and not _was_reported:
        text = (
            f"the C++ kernels cannot be used: impl='cpp' {reason}; PyTorch computes the layers that need it"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        # Not reached if warnings are turned into errors, so the next call raises again.
        _was_reported = True
    return not reason


# Make torch.compile call these functions instead of tracing them. Their results depend on the installation
# and the device and cannot change (and the compiler of torch 2.11 rejects find_spec). Setting this attribute
# is all that torch.compiler.assume_constant_result does, but calling that imports the whole compiler (2.5 s).
_has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
why_not_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
_why_not_cpp._dynamo_marked_constant = True  # type: ignore[attr-defined]
_can_use_cpp._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_transformed() -> bool:
    """Return whether torch.func (grad, vmap, jvp ...) or forward-mode differentiation is active.

    The kernels' operators support neither.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


# Dynamo enters the transforms that it traces, and guards on the stack of transforms. A result obtained while
# tracing is therefore valid for the traced code.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_autocast_on(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x; some devices, such as meta, have none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def resolve_impl(op: str, impl: str, x: Tensor) -> Impl:
    """Return the implementation that computes ``op`` on ``x``: "triton", "cpp" or "reference".

    "auto" selects Triton on an NVIDIA GPU and the C++ kernels on a CPU, for the dtypes that they support, and
    the reference otherwise. Under torch.func's transforms and in forward-mode differentiation "auto" and
    "cpp" select the reference; "auto" also does so in a network that is exported or traced, whose file should
    not need this package.
    Raises ValueError if an explicit impl does not support the device or the transform, and TypeError if it
    does not support the dtype.
    """
    check_impl(impl)
    if impl == "reference":
        return "reference"
    if _is_transformed():
        if impl == "triton":
            raise ValueError(
                f"{op}: impl='triton' does not support torch.func's transforms or forward-mode"
                " differentiation; use impl='auto'"
            )
        return "reference"
    if impl == "triton":
        return _require_triton(op, x)
    if impl == "cpp":
        return _require_cpp(op, x)
    nvidia = x.device.type == "cuda" and torch.version.hip is None
    if nvidia or _as_on_gpu:
        usable = x.dtype in DTYPES and not why_not_triton(x.device.type, x.device.index)
        return "triton" if usable else "reference"
    return "cpp" if _prefers_cpp(x) else "reference"


def _require_triton(op: str, x: Tensor) -> Literal["triton"]:
    reason = why_not_triton(x.device.type, x.device.index)
    if reason:
        raise ValueError(f"{op}: impl='triton' {reason}; use impl='auto' or impl='reference'")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{op}: impl='triton' takes float32, bfloat16 or float16, got {x.dtype}; use impl='reference'"
        )
    return "triton"


def _require_cpp(op: str, x: Tensor) -> Impl:
    reason = _why_not_cpp(x.device.type)
    if reason:
        raise ValueError(f"{op}: impl='cpp' {reason}; use impl='auto' or impl='reference'")
    if x.dtype not in CPP_DTYPES or x.layout != torch.strided:
        kind = x.dtype if x.layout == torch.strided else x.layout
        raise TypeError(f"{op}: impl='cpp' takes float32 or bfloat16, got {kind}; use impl='reference'")
    return "cpp"


def _prefers_cpp(x: Tensor) -> bool:
    """Return whether "auto" selects the C++ kernels for x."""
    if x.device.type != "cpu" or x.dtype not in CPP_DTYPES or x.layout != torch.strided:
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return _can_use_cpp()


def asks_gradient(x: Tensor, parameters: Iterable[Tensor | None]) -> bool:
    """Return whether a result of x and ``parameters`` gets a gradient."""
    if not torch.is_grad_enabled():
        return False
    return x.requires_grad or any(p is not None and p.requires_grad for p in parameters)
