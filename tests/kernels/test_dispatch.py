"""What serves a tensor: the reference where there is no GPU, and an error where the kernels were asked
for."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from fastcyclegan.kernels import instance_norm, instance_norm_ref


def test_a_cpu_tensor_is_refused_where_nothing_interprets() -> None:
    code = "import torch, fastcyclegan.kernels as k; k.instance_norm(torch.zeros(1, 3, 4, 4), impl='triton')"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "ValueError: instance_norm: impl='triton' needs an NVIDIA GPU, got cpu" in done.stderr


def test_auto_is_the_reference_on_a_cpu() -> None:
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(instance_norm(x), instance_norm_ref(x))
