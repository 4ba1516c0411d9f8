"""Tests of how a kernel's errors are reported, and of which errors come from the device and are raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastcyclegan.kernels import _failures, _fallback, instance_norm
from fastcyclegan.kernels._failures import KernelError
from tests.kernels.arguments import impl
from tests.planted import ERRORS, plant

pytestmark = pytest.mark.usefixtures("auto_is_triton")


@pytest.mark.parametrize(("error", "verb", "cause"), ERRORS, ids=[row[2][:30] for row in ERRORS])
def test_a_warning_or_an_error_reports_the_failure(
    error: Callable[[], Exception], verb: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "_instance_norm_small_fwd_kernel", error)
    sentence = rf"kernel _instance_norm_small_fwd_kernel does not {verb} on cpu, interpreted \(.*{cause}.*\)"
    again = (
        r"To reproduce it: python -m fastcyclegan.devtools.show_failure"
        r" /.*/failures/instance_norm_small_fwd_kernel-\w+\.json$"
    )
    with pytest.warns(
        RuntimeWarning,
        match=f"^instance_norm: {sentence}; PyTorch computes the layers that need it from here on. {again}",
    ):
        instance_norm(torch.randn(1, 3, 4, 4))
    with pytest.raises(KernelError, match=rf"^{sentence}\. {again}") as caught:
        instance_norm(torch.randn(1, 3, 4, 4), impl="triton")
    assert type(caught.value.__cause__) is type(error())


# --- Errors that are not a kernel's fault -------------------------------------------------------------------

FAULTS: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    torch.AcceleratorError("CUDA error: unknown error"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: device-side assert triggered"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{type(fault).__name__} {fault}"[:50])
def test_errors_of_a_full_or_dead_device_are_raised(
    fault: BaseException, required: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, "_instance_norm_small_fwd_kernel", lambda: fault)
    with pytest.raises(type(fault)) as caught:
        instance_norm(torch.randn(1, 3, 4, 4), impl=impl(required))
    assert caught.value is fault
    assert not _fallback._fallen


def test_the_error_of_a_dead_device_is_raised_except_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a launch fails because earlier work has broken the device, the device's own error is raised.

    The results of that earlier work are then suspect. During a capture, the device is not checked.
    """
    dead = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    refused = RuntimeError("invalid argument")

    def synchronize(device: torch.device) -> None:
        raise dead

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    _failures.raise_device_error(torch.device("cuda"), refused)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(torch.AcceleratorError) as caught:
        _failures.raise_device_error(torch.device("cuda"), refused)
    assert caught.value is dead
    assert dead.__cause__ is refused
