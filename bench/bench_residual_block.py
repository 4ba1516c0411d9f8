"""Benchmark the residual block, forward and backward.

The providers are PyTorch eager and compiled, cuDNN's convolutions with fastcyclegan's norms, and
fastcyclegan's single operator for the block.

On a GPU the block runs in bf16 at 64 x 64 x 256 with 1 to 16 images. On a CPU there is a reduced block in
fp32, where "ours" is the implementation that impl="auto" selects. The results of the timed rounds are
compared with float64. The rows for forward and backward together show which backend is faster for a shape.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.bench_reflect_conv import BACKENDS, DTYPE, IMPL, STRIDE_1
from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, compiled, products
from bench.timing import Entrant, Race, builders_of, clock, rotations
from fastcyclegan.kernels import instance_norm, residual_block, residual_block_ref
from fastcyclegan.kernels.backend_table import backend_key
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.reference import contiguous_gradient

SHAPES = {
    "cuda": [(4, 256, 64, 64), (2, 256, 64, 64), (1, 256, 64, 64), (16, 256, 64, 64)],
    "cpu": [(1, 32, 32, 32)],
}
PROVIDERS = {
    "cuda": ["matmul", "eager", "compiled", "cudnn_padded", "ours"],
    "cpu": ["matmul", "eager", "compiled", "ours"],
}

# On a GPU the costs include torch's autotuning of the convolutions.
pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=20, cuda=45)]


def eager(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    y = F.relu(eager_conv_and_norm(x, weight1))
    return x + eager_conv_and_norm(y, weight2)


def eager_conv_and_norm(x: Tensor, weight: Tensor) -> Tensor:
    y = F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight)
    return contiguous_gradient(F.instance_norm(y))


def around_cudnn(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    c1 = norm_conv(x, weight1, None, STRIDE_1, norm=False, border=1)
    c2 = norm_conv(c1, weight2, None, STRIDE_1, act="relu", border=1)
    return instance_norm(c2, residual=x, impl="triton")


def function(provider: str) -> Operator:
    if provider == "compiled":
        return compiled(residual_block_ref)
    functions: dict[str, Operator] = {
        "eager": eager,
        "cudnn_padded": around_cudnn,
        "ours": partial(residual_block, impl=IMPL[DEVICE]),
    }
    return functions[provider]


def entrant(provider: str, case: Case, flops: int, fault: bool) -> Entrant:
    if provider == "matmul":
        return products(DTYPE[DEVICE])
    info: dict[str, object] = {"flops": flops * len(case.inputs)}
    if case.direction == "all" and provider in BACKENDS:
        N, C, H, W = case.inputs[0][0].shape
        info["backend_key"] = backend_key("residual_block", DTYPE[DEVICE], N, 1, H * W, C, C, 3)
        info["backend"] = BACKENDS[provider]
    return case.entrant(provider, function(provider), fault and provider == "ours", **info)


@pytest.mark.parametrize("provider", PROVIDERS[DEVICE])
@pytest.mark.parametrize("direction", ["forward", "all"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_residual_block(
    race: Race, fault: bool, shape: tuple[int, ...], direction: str, provider: str
) -> None:
    N, C, H, W = shape
    dtype = DTYPE[DEVICE]
    torch.manual_seed(0)

    def one() -> tuple[Tensor, ...]:
        x = channels_last(*shape, dtype=dtype)
        weight1, weight2 = (channels_last(C, C, 3, 3, dtype=dtype) / (9 * C) ** 0.5 for _ in range(2))
        return x, weight1, weight2, channels_last(*shape, dtype=dtype)

    count = rotations(2 * torch.Size(shape).numel() * dtype.itemsize, DEVICE)
    case = Case(eager, [one() for _ in range(count)], direction)
    flops = 2 * 2 * N * H * W * C * C * 9
    if direction == "all":
        flops *= 3
    group = f"residual block, {N} of {H}x{W}x{C}, {direction}, {str(dtype).removeprefix('torch.')}, {DEVICE}"
    builders = builders_of(PROVIDERS[DEVICE], lambda p: entrant(p, case, flops, fault))
    race(group, builders, ROUNDS[DEVICE], seconds=5)
