"""Make our code independent of what the caller set for the process or the thread, and check what is passed.

Callers can set torch's default dtype and device, inference mode, and whether autograd records.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_CHANGING_DTYPE = threading.Lock()


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Run the body with the CPU as the default device, autograd on, and not in inference mode.

    This affects only the current thread, which also holds what the caller set.
    """
    with contextlib.ExitStack() as stack:
        # Such a context slows down every operator, so it is used only where it has an effect.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Create tensors of floating point in float32 inside the body, whatever the default dtype is.

    The default belongs to the process, so the body should be short: only one thread is in it at a time.
    """
    with _CHANGING_DTYPE:
        before = torch.get_default_dtype()
        if before == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def require_dtype(dtype: object, caller: str) -> None:
    """Raise TypeError or ValueError unless ``dtype`` is one that a network can have.

    ``caller`` begins the message.
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{caller}: dtype must be a torch.dtype such as torch.float16, got {dtype!r}")
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ValueError(f"{caller}: dtype must be float32, float64, float16 or bfloat16, got {dtype}")


def require_device(device: object, caller: str) -> torch.device:
    """Return ``device`` as a torch.device.

    Raises TypeError or ValueError, with ``caller``, if it is none, or one that this machine does not have.
    """
    if not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
        raise TypeError(f"{caller}: device must be a name such as cpu or cuda:0, got {device!r}")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{caller}: device must be a name such as cpu or cuda:0, got {device!r}") from None
    index = 0 if found.index is None else found.index
    missing = found.type == "cuda" and index >= torch.cuda.device_count()
    if missing or (found.type == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"{caller}: device {found} is not available on this machine")
    return found
