"""Benchmark instance norm followed by ReLU, forward and backward, in GB/s.

The providers are PyTorch eager on channels_last, PyTorch compiled, and fastcyclegan's kernels. A copy of the
same number of bytes is measured alongside them.

On a GPU the benches cover every shape of the networks in bf16, and shapes larger than the L2 cache. On a CPU
there is one reduced shape in fp32. Only the ratio matters there, and "ours" is the implementation that
impl="auto" selects. Several inputs are used in turn, so that they are not in the L2 cache. On a GPU each
round is a CUDA graph, so that the times do not include launches from Python. The results of the timed rounds
are compared with float64.

Bytes are the minimum traffic: the forward reads x twice and writes y once, and the backward reads dy and x
twice each and writes dx once (kernels/README.md).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, compiled, copies
from bench.timing import Entrant, Race, builders_of, clock, rotations
from fastcyclegan.kernels import instance_norm, instance_norm_ref
from fastcyclegan.reference import contiguous_gradient

# The most informative first: larger than L2, then the residual blocks, then the rest of the generator, the
# discriminator and the U-Net.
SHAPES = {
    "cuda": [
        (16, 256, 64, 64), (16, 64, 256, 256), (1, 256, 64, 64), (4, 256, 64, 64), (1, 64, 256, 256),
        (1, 128, 128, 128),
        (4, 128, 128, 128), (1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 31, 31), (1, 512, 8, 8),
    ],
    "cpu": [(1, 64, 64, 64)],
}  # fmt: skip
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
PROVIDERS = ["copy", "eager", "compiled", "ours"]
# The minimum traffic, as a multiple of the bytes of the input.
PASSES = {"forward": 3, "backward": 5}

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=15, cuda=8)]


def eager(x: Tensor) -> Tensor:
    return contiguous_gradient(F.relu(F.instance_norm(x)))


def entrant(provider: str, case: Case, moved: int, fault: bool) -> Entrant:
    count = len(case.inputs)
    if provider == "copy":
        return copies(moved, count)
    f: Operator = eager
    if provider == "compiled":
        f = compiled(lambda x: instance_norm_ref(x, act="relu"))
    elif provider == "ours":
        f = partial(instance_norm, act="relu")
    return case.entrant(provider, f, fault and provider == "ours", bytes=moved * count)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_instance_norm(
    race: Race, fault: bool, shape: tuple[int, ...], direction: str, provider: str
) -> None:
    dtype = DTYPE[DEVICE]
    torch.manual_seed(0)
    size = torch.Size(shape).numel() * dtype.itemsize
    inputs: list[tuple[Tensor, ...]] = []
    for _ in range(rotations(2 * size, DEVICE)):
        x, dy = channels_last(*shape, dtype=dtype), channels_last(*shape, dtype=dtype)
        inputs.append((x, dy))
    case, moved = Case(eager, inputs, direction), PASSES[direction] * size
    images = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    builders = builders_of(PROVIDERS, lambda p: entrant(p, case, moved, fault))
    race(f"instance norm + ReLU, {direction}, {images}, {DEVICE}", builders, ROUNDS[DEVICE], seconds=5)
