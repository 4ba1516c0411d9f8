"""The device and precision chosen for a configuration, and the reason why torch.compile does not work."""

from __future__ import annotations

import getpass
import os
import pwd

import pytest
import torch

from fastcyclegan.config import RunConfig, TrainConfig
from fastcyclegan.engine import resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.preparation import prepare_networks
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


@pytest.mark.parametrize("start", ["compiling", "training"])
def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Before 2.13, torch's compiler asks for the user's name when it is imported, and fails without one."""
    from torch._inductor import cpp_builder, exc

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    def fail() -> str:
        raise exc.InvalidCxxCompiler

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)
    if start == "compiling":
        why_not_compiled(torch.device("cpu"))
    else:
        prepare_networks(TrainConfig().make_recipe(), {}, torch.device("cpu"))
    assert getpass.getuser() == f"uid_{os.getuid()}"
