"""The residual block, forward and backward: PyTorch eager and compiled, our norms around cuDNN's convolutions, and the one operator.

On a GPU in bf16 at 64 x 64 x 256 and 1 to 16 pictures; on a CPU a reduced block in fp32, where ours is what impl="auto" takes. Parity is
asserted on the tensors that are timed. Rows of forward and backward together say which backend is the faster one for a shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_reflect_conv import DEVICE, DTYPE, STRIDE_1, matmul_steps
from pytest_benchmark.fixture import BenchmarkFixture
from timing import one_round, rotations, synchronised
from torch import Tensor

from fastcyclegan.engine import why_not_compiled
from fastcyclegan.kernels import instance_norm, residual_block, residual_block_ref
from fastcyclegan.kernels._backend import backend_key
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.reference import ContiguousGradient
from fastcyclegan.testing import assert_parity

SHAPES = {"cuda": [(4, 256, 64, 64), (2, 256, 64, 64), (1, 256, 64, 64), (16, 256, 64, 64)], "cpu": [(1, 32, 32, 32)]}
PROVIDERS = ["matmul", "eager", "compiled", "ours"] if DEVICE == "cpu" else ["matmul", "eager", "compiled", "cudnn_padded", "ours"]
Block = Callable[[Tensor, Tensor, Tensor], Tensor]

pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=False)


def eager(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    y = F.relu(ContiguousGradient.apply(F.instance_norm(F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight1))))
    return x + ContiguousGradient.apply(F.instance_norm(F.conv2d(F.pad(y, (1,) * 4, mode="reflect"), weight2)))


def around_cudnn(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    c1 = norm_conv(x, weight1, None, STRIDE_1, norm=False, border=1)
    c2 = norm_conv(c1, weight2, None, STRIDE_1, act="relu", border=1)
    return instance_norm(c2, residual=x, impl="triton")


def function(provider: str) -> Block:
    if provider == "compiled":
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs" if DEVICE == "cuda" else "default"
        return torch.compile(residual_block_ref, dynamic=False, fullgraph=True, mode=mode)  # type: ignore[no-any-return]
    impl = "triton" if DEVICE == "cuda" else "auto"
    ours = {"eager": eager, "cudnn_padded": around_cudnn, "ours": lambda *t: residual_block(*t, impl=impl)}
    return ours[provider]


def inputs(shape: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Return x, both weights and dy, as often as it takes to be past the L2 cache when their turn comes again."""
    torch.manual_seed(0)
    C = shape[1]

    def channels_last(*size: int) -> Tensor:
        return torch.randn(size, device=DEVICE, dtype=DTYPE[DEVICE]).contiguous(memory_format=torch.channels_last)

    def one() -> tuple[Tensor, ...]:
        return channels_last(*shape), *(channels_last(C, C, 3, 3) / (9 * C) ** 0.5 for _ in range(2)), channels_last(*shape)

    return [one() for _ in range(rotations(2 * torch.Size(shape).numel() * DTYPE[DEVICE].itemsize, DEVICE))]


def steps(f: Block, given: list[tuple[Tensor, ...]], direction: str) -> list[Callable[[], Any]]:
    if direction == "forward":
        return [lambda ts=ts: f(*ts[:3]) for ts in given]
    leaves = [([t.detach().requires_grad_() for t in ts[:3]], ts[3]) for ts in given]
    return [lambda ts=ts, dy=dy: torch.autograd.grad(f(*ts), ts, dy) for ts, dy in leaves]


def check(provider: str, f: Block, given: tuple[Tensor, ...]) -> None:
    """Hold output and gradients for these very tensors against float64, with eager in the same dtype as the yardstick."""
    results = []
    dtype = given[0].dtype
    for g, kind in ((f, dtype), (eager, dtype), (eager, torch.float64)):
        ts = [t.detach().to(kind).requires_grad_() for t in given[:3]]
        y = g(*ts)
        results.append((y, *torch.autograd.grad(y, ts, given[3].to(kind))))
    for name, ours, theirs, truth in zip(("y", "dx", "dweight1", "dweight2"), *results, strict=True):
        assert_parity(f"{provider} {name}", ours, theirs, truth, dtype)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", ["forward", "all"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_residual_block(benchmark: BenchmarkFixture, shape: tuple[int, ...], direction: str, provider: str) -> None:
    N, C, H, W = shape
    dtype = str(DTYPE[DEVICE]).removeprefix("torch.")
    benchmark.group = f"residual block, {N} of {H}x{W}x{C}, {direction}, {dtype}, {DEVICE}"
    if provider == "compiled" and (reason := why_not_compiled(torch.device(DEVICE))):
        pytest.skip(reason)
    if provider == "matmul":
        size = 8192 if DEVICE == "cuda" else 512
        benchmark.extra_info.update(provider=provider, flops=2 * size**3, operations=1, dtype=dtype)
        benchmark.pedantic(one_round(matmul_steps, DEVICE), rounds=5 if DEVICE == "cpu" else 30, warmup_rounds=2)
        return
    given, f = inputs(shape), function(provider)
    check(provider, f, given[0])
    flops = 2 * 2 * N * H * W * C * C * 9 * (3 if direction == "all" else 1)
    benchmark.extra_info.update(provider=provider, flops=flops * len(given), operations=len(given), dtype=dtype)
    if direction == "all" and provider in ("ours", "cudnn_padded"):
        key = backend_key("residual_block", DTYPE[DEVICE], N, 1, H * W, C, C, 3)
        benchmark.extra_info.update(backend_key=key, backend="triton" if provider == "ours" else "cudnn")
    run = one_round(lambda: steps(f, given, direction), DEVICE)
    benchmark.pedantic(run, rounds=5 if DEVICE == "cpu" else 30, warmup_rounds=2)
