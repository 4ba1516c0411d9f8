"""A helper that creates the record of a failed launch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan.kernels import instance_norm
from fastcyclegan.kernels._failures import KernelError
from tests.planted import clear_failures, plant


def record_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a kernel fail, and return the record file that the error message refers to."""
    with monkeypatch.context() as patch:
        clear_failures(patch)
        plant(patch, "_instance_norm_small_fwd_kernel")
        with pytest.raises(KernelError) as caught:
            instance_norm(torch.randn(2, 5, 4, 4), act="relu", impl="triton")
    command = caught.value.again.removeprefix("To reproduce it: ").split()
    assert command[:-1] == ["python", "-m", "fastcyclegan.devtools.show_failure"]
    return Path(command[-1])
