"""Instance norm + activation, forward and backward: PyTorch eager on channels_last, PyTorch compiled, and the kernels; in GB/s.

On a GPU at every shape of the networks in bf16, and past the L2 cache; on a CPU one reduced shape in fp32, where the ratio is what counts
and ours is what impl="auto" takes there. A copy of as many bytes is measured beside them. Parity is asserted on the tensors that are
timed. The inputs go round past the L2 cache; on a GPU one round is a CUDA graph, so that no launch from Python is in the figure.

Bytes are those that must move: forward x twice and y once, backward dy and x twice and dx once (kernels/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from timing import one_round, rotations, synchronised
from torch import Tensor

from fastcyclegan.engine import why_not_compiled
from fastcyclegan.kernels import instance_norm, instance_norm_ref
from fastcyclegan.reference import ContiguousGradient
from fastcyclegan.testing import assert_parity

# The most telling first: past L2, then the residual blocks, then the rest of the generator, the discriminator and the U-Net.
SHAPES = {
    "cuda": [
        (16, 256, 64, 64), (16, 64, 256, 256), (1, 256, 64, 64), (4, 256, 64, 64), (1, 64, 256, 256), (1, 128, 128, 128),
        (4, 128, 128, 128), (1, 128, 64, 64), (1, 256, 32, 32), (1, 512, 31, 31), (1, 512, 8, 8),
    ],
    "cpu": [(1, 64, 64, 64)],
}  # fmt: skip
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
PROVIDERS = ["copy", "eager", "compiled", "ours"]


# The backward is timed alone, again and again: the compiled one must leave what it reads as it was.
torch._functorch.config.donated_buffer = False

pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=False)


def eager(x: Tensor) -> Tensor:
    return ContiguousGradient.apply(F.relu(F.instance_norm(x)))


def function(provider: str) -> Callable[[Tensor], Tensor]:
    """Return what ``provider`` computes with. The compiled one is new for each bench: too many shapes for one would run uncompiled."""
    if provider == "compiled":
        torch._dynamo.reset()
        return torch.compile(lambda x: instance_norm_ref(x, act="relu"), dynamic=False, fullgraph=True)  # type: ignore[no-any-return]
    return {"eager": eager, "ours": lambda x: instance_norm(x, act="relu")}[provider]


def inputs(shape: tuple[int, ...], device: str, direction: str) -> list[tuple[Tensor, Tensor]]:
    """Return pairs (x, dy), as many as it takes to be past the L2 cache when their turn comes again."""
    torch.manual_seed(0)
    size = torch.Size(shape).numel() * DTYPE[device].itemsize

    def one() -> Tensor:
        return torch.randn(shape, device=device, dtype=DTYPE[device]).contiguous(memory_format=torch.channels_last)

    return [(one().requires_grad_(direction == "backward"), one()) for _ in range(rotations(2 * size, device))]


def steps(f: Callable[[Tensor], Tensor] | None, pairs: list[tuple[Tensor, Tensor]], direction: str) -> list[Callable[[], Any]]:
    """Return what is timed, one function a pair: the forward of ``f``, its backward alone, or, without ``f``, a copy of as many bytes."""
    if f is None:
        tensors = 3 if direction == "forward" else 5
        # A copy reads and writes: half of the bytes each.
        buffers = [torch.empty(tensors * x.numel(), dtype=x.dtype, device=x.device).chunk(2) for x, _ in pairs]
        return [lambda a=a, b=b: b[: a.numel()].copy_(a[: b.numel()]) for a, b in buffers]
    if direction == "forward":
        return [lambda x=x: f(x) for x, _ in pairs]
    outputs = [(f(x), x, dy) for x, dy in pairs]
    return [lambda y=y, x=x, dy=dy: torch.autograd.grad(y, x, dy, retain_graph=True) for y, x, dy in outputs]


def check(provider: str, f: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> None:
    """Hold output and gradient for this very x and dy against float64, with eager in the same dtype as the yardstick."""
    results = []
    for g, dtype in ((f, x.dtype), (eager, x.dtype), (eager, torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        y = g(leaf)
        results.append((y, *torch.autograd.grad(y, leaf, dy.to(dtype))))
    for name, ours, theirs, truth in zip(("y", "dx"), *results, strict=True):
        assert_parity(f"{provider} {name}", ours, theirs, truth, x.dtype)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("shape", SHAPES["cuda" if torch.cuda.is_available() else "cpu"], ids=lambda s: "x".join(map(str, s)))
def bench_instance_norm(benchmark: BenchmarkFixture, device: str, shape: tuple[int, ...], direction: str, provider: str) -> None:
    dtype = str(DTYPE[device]).removeprefix("torch.")
    benchmark.group = f"instance norm + ReLU, {direction}, {'x'.join(map(str, shape))} {dtype}, {device}"
    if provider == "compiled" and (reason := why_not_compiled(torch.device(device))):
        pytest.skip(reason)
    pairs = inputs(shape, device, direction)
    f = None if provider == "copy" else function(provider)
    if f is not None:
        check(provider, f, *pairs[0])
    moved = (3 if direction == "forward" else 5) * pairs[0][0].numel() * DTYPE[device].itemsize
    benchmark.extra_info.update(provider=provider, bytes=moved * len(pairs), operations=len(pairs), dtype=dtype)
    run = one_round(lambda: steps(f, pairs, direction), device)
    benchmark.pedantic(run, rounds=5 if device == "cpu" else 30, warmup_rounds=2)
