"""Count the launches, ATen calls and saved bytes of forward and backward passes in dry runs.

If a change adds a launch, a pass or a saved tensor, these tests fail.
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
def test_bytes_that_the_generator_saves(dtype: torch.dtype, plain: int, ours: int) -> None:
    """The generator saves as many bytes as expected, less than half as many as with plain PyTorch.

    Each block saves its input and two convolution outputs, and each other layer one tensor.
    """
    assert counts(Generator, dtype, impl="reference").saved_bytes // MIB == plain
    saved = counts(Generator, dtype, impl="triton").saved_bytes
    assert saved // MIB == ours
    without_recompute = counts(Generator, dtype, impl="triton", recompute=False).saved_bytes
    assert without_recompute > 1.25 * ours * MIB
    if dtype == torch.bfloat16:
        assert saved <= 0.52 * counts(Generator, dtype, impl="reference").saved_bytes
        assert saved <= 0.26 * counts(Generator, torch.float32, impl="reference").saved_bytes


def test_launches_of_the_generator() -> None:
    """Each of the generator's 9 blocks makes 4 launches in the forward pass and 8 in the backward pass.

    The other launches are those of 5 more norms, whose images are large, and of the first and last
    convolution.
    """
    counted = counts(Generator, impl="triton")
    blocks = {
        "_reflect_conv_kernel": 2 + 2,
        "_instance_norm_apply_kernel": 2,
        "_instance_norm_bwd_sums_kernel": 2,
        "_instance_norm_bwd_apply_kernel": 2,
        "_reflect_conv_wgrad_kernel": 1,
        "_reflect_conv_wgrad_sum_kernel": 1,
    }
    norms = tuple(f"_instance_norm_{name}_kernel" for name in ("stats", "apply", "bwd_sums", "bwd_apply"))
    # The image and its gradient are padded, and the image is padded again for the gradient of the weight.
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
    expected = Counter({name: 9 * count for name, count in blocks.items()}) + Counter(
        5 * norms + first + last + 2 * wgrad
    )
    assert counted.launches == expected
    # These are for two stride-2 and two transposed convolutions, for three copies of the first and last
    # layers' weights in the kernels' format, and for the gradient of a bias.
    assert counted.aten == {
        "convolution": 4,
        "convolution_backward": 7,
        "new_zeros": 5,
        "copy_": 5,
        "flip": 2,
        "sum": 1,
    }


def test_a_discriminators_norms_take_one_or_two_backward_launches() -> None:
    counted = counts(Discriminator, impl="triton")
    # The images of the first norm have 64 x 64 pixels. Those of the other two have 32 x 32 and 31 x 31, which
    # fit into one program, except for the pass that writes y again.
    assert counted.launches["_instance_norm_small_fwd_kernel"] == 2
    assert counted.launches.total() == 10
    assert counted.aten.total() < counts(Discriminator, impl="reference").aten.total() / 1.5


def test_counts_of_one_operator() -> None:
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
    # Our norm saves x and two vectors. PyTorch saves a copy in another layout, the ReLU's output and two
    # vectors.
    assert ours.saved_bytes == x.numel() * 4 + 2 * 64 * 4
    assert plain.saved_bytes == 2 * x.numel() * 4 + 2 * 64 * 4


def test_the_script_rejects_sizes_that_the_unet_does_not_support() -> None:
    script = Path(__file__).parents[2] / "scripts" / "count_operations.py"
    process = subprocess.run([sys.executable, script, "64"], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "a multiple of 256 because of the U-Net" in process.stderr


def test_a_dry_run_does_not_affect_other_threads(device: str) -> None:
    """During a dry run, kernels launched by another thread really run and are not counted."""
    x = torch.randn(1, 8, 8, 8, device=device)
    results: list[torch.Tensor] = []
    with dry_run() as run:
        thread = threading.Thread(target=lambda: results.append(instance_norm(x, impl="triton")))
        thread.start()
        thread.join()
        assert run.counts.launches.total() == 0
        instance_norm(x.cpu(), impl="triton")
    assert run.counts.launches.total() == 1
    torch.testing.assert_close(results[0], F.instance_norm(x), rtol=1e-4, atol=1e-4)
