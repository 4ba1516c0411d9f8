"""What a forward and backward costs, counted: a change that adds a launch, a pass or a saved tensor shows here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcyclegan.counters import Counts, count
from fastcyclegan.kernels import instance_norm
from fastcyclegan.networks import Discriminator, Generator

MIB = 2**20


def counts(build: type[nn.Module], dtype: torch.dtype = torch.float32, **options: object) -> Counts:
    net = build(**options).to(dtype=dtype, memory_format=torch.channels_last)
    return count(net, torch.zeros(1, 3, 256, 256, dtype=dtype).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("dtype", "plain", "ours"), [(torch.float32, 343, 166), (torch.bfloat16, 172, 83)])
def test_bytes_that_the_generator_keeps(dtype: torch.dtype, plain: int, ours: int) -> None:
    """Two convolution outputs and the input of each block, one tensor of each other layer: under half of what plain PyTorch keeps."""
    assert counts(Generator, dtype, impl="reference").saved_bytes // MIB == plain
    assert counts(Generator, dtype, impl="triton").saved_bytes // MIB == ours
    kept = counts(Generator, dtype, impl="triton", recompute=False).saved_bytes
    assert kept > 1.7 * ours * MIB


def test_launches_of_the_generator() -> None:
    """23 norms, 21 of them of large pictures or inside a border: forward 2 launches each; backward 2, a fold where there was a border."""
    found = counts(Generator, impl="triton").launches
    assert found == {
        "_instance_norm_stats_kernel": 23,
        "_instance_norm_apply_kernel": 23,
        "_instance_norm_bwd_sums_kernel": 23,
        "_instance_norm_bwd_apply_kernel": 23,
        # The first convolution of each block has no norm before it: padded in the forward, and again for its weight's gradient.
        "_reflect_pad_kernel": 18,
        "_fold_border_kernel": 19,
    }


def test_the_backward_of_a_discriminator_is_two_launches_a_norm_or_one() -> None:
    found = counts(Discriminator, impl="triton")
    # 64 x 64; then 32 x 32 and 31 x 31, which a program holds whole, but for the pass that writes y again.
    assert found.launches["_instance_norm_small_fwd_kernel"] == 2
    assert found.launches.total() == 10
    assert found.aten.total() < counts(Discriminator, impl="reference").aten.total() / 1.5


def test_one_operator() -> None:
    class Norm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return instance_norm(x, act="relu", impl="triton")

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(F.instance_norm(x))

    x = torch.zeros(1, 64, 128, 128).contiguous(memory_format=torch.channels_last)
    ours, plain = count(Norm(), x), count(Plain(), x)
    assert ours.launches.total() == 4
    assert ours.aten.total() == 0
    # x and two vectors, against the copy in another layout, the result of the ReLU, and two vectors.
    assert ours.saved_bytes == x.numel() * 4 + 2 * 64 * 4
    assert plain.saved_bytes == 2 * x.numel() * 4 + 2 * 64 * 4


def test_the_script_prints_a_line_for_each() -> None:
    script = Path(__file__).parents[1] / "scripts" / "count_operations.py"
    done = subprocess.run([sys.executable, script, "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "U-Net needs 256" in done.stderr
