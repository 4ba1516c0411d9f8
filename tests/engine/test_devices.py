"""The device and precision chosen for a configuration, and the reason why torch.compile does not work."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.config import RunConfig
from fastcyclegan.engine import resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.errors import UserError


def test_devices_and_precisions() -> None:
    cpu = torch.device("cpu")
    assert resolve_device(RunConfig(gpu_ids="-1")) == cpu
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="sees no CUDA GPU"):
            resolve_device(RunConfig(device="cuda"))
        with pytest.raises(UserError, match=r"device cuda:1: torch .* sees no CUDA GPU"):
            resolve_device(RunConfig(gpu_ids="1"))
    assert resolve_precision("auto", cpu, compiled=False) == "fp32"
    assert resolve_precision("bf16", cpu, compiled=False) == "bf16"


def test_why_not_compiled_names_the_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def fail() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)
    assert why_not_compiled(torch.device("cpu")).startswith("no C++ compiler found")
