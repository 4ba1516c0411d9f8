"""Choose the device and precision for a run, and check that the kernels and torch.compile work there."""

from __future__ import annotations

import getpass
import os

import torch

from fastcyclegan.errors import UserError, one_line
from fastcyclegan.kernels.dispatch import check_impl, resolve_impl
from fastcyclegan.settings.run import RunConfig


def resolve_device(config: RunConfig) -> torch.device:
    """Return the device that ``config`` requests. Raises UserError if this machine does not have it."""
    name = config.device
    if config.gpu_ids is not None:
        name = "cpu" if config.gpu_ids == "-1" else f"cuda:{config.gpu_ids}"
    if name == "auto":
        name = _best_device()
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: torch {torch.__version__} sees no CUDA GPU on this machine")
    index = 0 if device.index is None else device.index
    if device.type == "cuda" and index >= torch.cuda.device_count():
        raise UserError(
            f"device {name}: this machine has {torch.cuda.device_count()} CUDA GPU(s), numbered from 0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device mps: torch {torch.__version__} sees no Apple GPU on this machine")
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 numbers in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def resolve_precision(precision: str, device: torch.device, compiled: bool) -> str:
    """Return the precision to use, "fp32" or "bf16".

    Raises UserError if bf16 is requested on a GPU that does not support it.
    """
    if precision == "auto":
        worth_it = compiled or device.type == "cuda"
        return "bf16" if worth_it and has_bf16(device) else "fp32"
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise UserError(
            f"precision bf16: {torch.cuda.get_device_name(device)} does not support bf16;"
            " use --precision fp32"
        )
    return precision


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Return an autocast context for ``dtype``, disabled if that is float32."""
    if dtype == torch.float32:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype)


def require_impl(impl: str, device: torch.device) -> None:
    """Raise UserError if the implementation ``impl`` ("triton", for example) does not support ``device``."""
    try:
        check_impl(impl, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def ensure_user_name() -> None:
    """Name the user of this process in its environment if the system has no name for its number.

    Batch systems and containers run such users. Before 2.13, torch's compiler cannot be imported without the
    name, of which it makes that of its cache folder; this is the name that later versions use.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid_{os.getuid()}"


def replaces_compiler(impl: str, device: torch.device) -> bool:
    """Return whether the C++ kernels compute networks with the given ``impl`` on ``device``.

    In training, they are faster than what torch.compile makes of PyTorch's operators, so nothing is compiled.
    """
    if device.type != "cpu" or impl not in ("auto", "cpp"):
        return False
    return resolve_impl("Engine", impl, torch.empty(0)) == "cpp"


def why_not_compiled(device: torch.device) -> str:
    """Return why torch.compile does not work on ``device``, in one line, or "" if it works.

    This compiles a tiny function to find out.
    """
    ensure_user_name()
    from torch._inductor import cpp_builder, exc

    if device.type == "mps":
        return "torch.compile is not used on Apple GPUs"
    if device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "no C++ compiler found (on Debian or Ubuntu: apt-get install g++)"
    try:
        torch.compile(lambda x: torch.cos(x) + 1)(torch.zeros(64, dtype=torch.float32, device=device))
    # The compiler, its headers or its linker can raise anything. The caller reports the reason and trains
    # without compiling.
    except Exception as error:
        return one_line(error)
    return ""
