"""Tests of which implementation is chosen on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from fastcyclegan.kernels import instance_norm, instance_norm_ref


def test_triton_is_rejected_on_the_cpu_without_the_interpreter() -> None:
    code = "import torch, fastcyclegan.kernels as k; k.instance_norm(torch.zeros(1, 3, 4, 4), impl='triton')"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "ValueError: instance_norm: impl='triton' needs an NVIDIA GPU, got cpu" in result.stderr


def test_auto_is_the_reference_on_a_cpu() -> None:
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(instance_norm(x), instance_norm_ref(x))
