"""What a forward and backward costs, counted: a change that adds a launch, a pass or a saved tensor shows
here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcyclegan.devtools.dry_run import Counts, count, dry_run
from fastcyclegan.kernels import instance_norm
from fastcyclegan.nn.networks import Discriminator, Generator

MIB = 2**20


def counts(build: type[nn.Module], dtype: torch.dtype = torch.float32, **options: object) -> Counts:
    net = build(**options).to(dtype=dtype, memory_format=torch.channels_last)
    return count(net, torch.zeros(1, 3, 256, 256, dtype=dtype).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize(("dtype", "plain", "ours"), [(torch.float32, 343, 165), (torch.bfloat16, 172, 83)])
def test_bytes_that_the_generator_keeps(dtype: torch.dtype, plain: int, ours: int) -> None:
    """Two convolution outputs and the input of each block, one tensor of each other layer: under half of what
    plain PyTorch keeps.
    """
    assert counts(Generator, dtype, impl="reference").saved_bytes // MIB == plain
    found = counts(Generator, dtype, impl="triton").saved_bytes
    assert found // MIB == ours
    kept = counts(Generator, dtype, impl="triton", recompute=False).saved_bytes
    assert kept > 1.25 * ours * MIB
    if dtype == torch.bfloat16:
        assert found <= 0.52 * counts(Generator, dtype, impl="reference").saved_bytes
        assert found <= 0.26 * counts(Generator, torch.float32, impl="reference").saved_bytes


def test_launches_of_the_generator() -> None:
    """Of each of the 9 blocks 4 forward and 8 backward; 5 norms more, whose images are large; the first and
    the last convolution.
    """
    found = counts(Generator, impl="triton")
    blocks = {
        "_reflect_conv_kernel": 2 + 2,
        "_instance_norm_apply_kernel": 2,
        "_instance_norm_bwd_sums_kernel": 2,
        "_instance_norm_bwd_apply_kernel": 2,
        "_reflect_conv_wgrad_kernel": 1,
        "_reflect_conv_wgrad_sum_kernel": 1,
    }
    norms = tuple(f"_instance_norm_{name}_kernel" for name in ("stats", "apply", "bwd_sums", "bwd_apply"))
    # The image and its gradient are put into borders; so is the image again for the weight's gradient.
    first = (
        "_embed_kernel",
        "_reflect_conv_kernel",
        "_embed_kernel",
        "_reflect_conv_contract_kernel",
        "_fold_kernel",
        "_embed_kernel",
    )
    last = ("_reflect_conv_contract_kernel", "_embed_kernel", "_reflect_conv_kernel", "_fold_border_kernel")
    wgrad = ("_reflect_conv_wgrad_kernel", "_reflect_conv_wgrad_sum_kernel")
    wanted = Counter({name: 9 * count for name, count in blocks.items()}) + Counter(
        5 * norms + first + last + 2 * wgrad
    )
    assert found.launches == wanted
    # Twice a stride-2 and a transposed convolution; three weights of the image's layers in the kernels'
    # form; a bias's gradient.
    assert found.aten == {
        "convolution": 4,
        "convolution_backward": 7,
        "new_zeros": 5,
        "copy_": 5,
        "flip": 2,
        "sum": 1,
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
    script = Path(__file__).parents[2] / "scripts" / "count_operations.py"
    done = subprocess.run([sys.executable, script, "64"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "U-Net needs 256" in done.stderr


def test_a_dry_run_is_its_threads_business(device: str) -> None:
    """Another thread's kernels run meanwhile, and are not counted."""
    x = torch.randn(1, 8, 8, 8, device=device)
    found: list[torch.Tensor] = []
    with dry_run() as run:
        thread = threading.Thread(target=lambda: found.append(instance_norm(x, impl="triton")))
        thread.start()
        thread.join()
        assert run.counts.launches.total() == 0
        instance_norm(x.cpu(), impl="triton")
    assert run.counts.launches.total() == 1
    torch.testing.assert_close(found[0], F.instance_norm(x), rtol=1e-4, atol=1e-4)
