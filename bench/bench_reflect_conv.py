"""Reflection-padded convolutions, pass by pass: PyTorch eager and compiled, cuDNN alone, cuDNN behind our padding, and the kernels.

On a GPU in bf16 at the generator's shapes and 1 to 16 pictures, in TFLOP/s, beside a matrix product measured in the same group; on a CPU
one reduced shape in fp32, where ours is what impl="auto" takes. "cudnn" is given the padded picture and returns the padded gradient, so
it does less than the others; "cudnn_padded" is the backend that our networks can take instead of the kernels; "in_the_block" is the
products as a residual block launches them, on buffers that its norms have written. Parity is asserted on the tensors that are timed.

Rows of forward and backward together say for which shapes cuDNN is the faster backend: scripts/gpu_suite.py makes the table of them.
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
from fastcyclegan.kernels import reflect_conv2d
from fastcyclegan.kernels._backend import backend_key
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.testing import assert_parity

# N, C, H, W, O, k: the residual convolution at 4 pictures and 2 first, then the first and the last layer.
SHAPES = {
    "cuda": [
        (4, 256, 64, 64, 256, 3), (2, 256, 64, 64, 256, 3), (1, 256, 64, 64, 256, 3), (1, 64, 256, 256, 3, 7), (4, 64, 256, 256, 3, 7),
        (1, 3, 256, 256, 64, 7), (4, 3, 256, 256, 64, 7), (16, 256, 64, 64, 256, 3),
    ],
    "cpu": [(1, 32, 32, 32, 32, 3)],
}  # fmt: skip
# Autotuning takes PyTorch's compiler half a minute a shape.
COMPILED = [SHAPES["cuda"][i] for i in (0, 1, 3, 5)] + SHAPES["cpu"]
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PASSES = ["all", "forward", "dgrad", "wgrad"]
PROVIDERS = ["matmul", "eager", "compiled", "ours"] if DEVICE == "cpu" else ["matmul", "eager", "compiled", "cudnn", "cudnn_padded", "ours"]
STRIDE_1: Any = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)

# The backward is timed alone, again and again: the compiled one must leave what it reads as it was.
torch._functorch.config.donated_buffer = False
pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=False)


def eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (weight.shape[2] // 2,) * 4, mode="reflect"), weight)


def function(provider: str) -> Callable[[Tensor, Tensor], Tensor]:
    if provider == "compiled":
        torch._dynamo.reset()
        # Its own CUDA graphs are off because a round is one already.
        mode = "max-autotune-no-cudagraphs" if DEVICE == "cuda" else "default"
        return torch.compile(eager, dynamic=False, fullgraph=True, mode=mode)  # type: ignore[no-any-return]
    return {
        "eager": eager,
        "cudnn": F.conv2d,
        "cudnn_padded": lambda x, w: norm_conv(x, w, None, STRIDE_1, norm=False, border=w.shape[2] // 2),
        "ours": lambda x, w: reflect_conv2d(x, w, padding=w.shape[2] // 2, impl="triton" if DEVICE == "cuda" else "auto"),
    }[provider]


def inputs(shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return x, weight and dy, as often as it takes to be past the L2 cache when their turn comes again."""
    N, C, H, W, O, k = shape
    torch.manual_seed(0)

    def channels_last(*size: int) -> Tensor:
        return torch.randn(size, device=DEVICE, dtype=DTYPE[DEVICE]).contiguous(memory_format=torch.channels_last)

    count = rotations((C + O) * N * H * W * DTYPE[DEVICE].itemsize, DEVICE)
    return [(channels_last(N, C, H, W), channels_last(O, C, k, k) / (C * k * k) ** 0.5, channels_last(N, O, H, W)) for _ in range(count)]


def leaves(x: Tensor, weight: Tensor, direction: str) -> list[Tensor]:
    """Return x and weight as leaves of which those want a gradient that ``direction`` is about."""
    return [x.detach().requires_grad_(direction in ("dgrad", "all")), weight.detach().requires_grad_(direction in ("wgrad", "all"))]


def steps(f: Callable[[Tensor, Tensor], Tensor], given: list[tuple[Tensor, Tensor, Tensor]], direction: str) -> list[Callable[[], Any]]:
    """Return what is timed, one function for each input."""
    if direction == "forward":
        return [lambda x=x, w=w: f(x, w) for x, w, _ in given]
    pairs = [(leaves(x, w, direction), dy) for x, w, dy in given]
    wanted = [[t for t in ts if t.requires_grad] for ts, _ in pairs]
    if direction == "all":
        return [lambda ts=ts, dy=dy, out=out: torch.autograd.grad(f(*ts), out, dy) for (ts, dy), out in zip(pairs, wanted, strict=True)]
    done = [(f(*ts), out, dy) for (ts, dy), out in zip(pairs, wanted, strict=True)]
    return [lambda y=y, out=out, dy=dy: torch.autograd.grad(y, out, dy, retain_graph=True) for y, out, dy in done]


def check(provider: str, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, dy: Tensor) -> None:
    """Hold output and both gradients for these very tensors against float64, with eager in the same dtype as the yardstick."""
    results = []
    for g, dtype in ((f, x.dtype), (eager, x.dtype), (eager, torch.float64)):
        ts = [t.detach().to(dtype).requires_grad_() for t in (x, weight)]
        y = g(*ts)
        results.append((y, *torch.autograd.grad(y, ts, dy.to(dtype))))
    for name, ours, theirs, truth in zip(("y", "dx", "dweight"), *results, strict=True):
        assert_parity(f"{provider} {name}", ours, theirs, truth, x.dtype)


def matmul_steps() -> list[Callable[[], Any]]:
    """A large square product in the same dtype: the rate to compare with."""
    size = 8192 if DEVICE == "cuda" else 512
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE[DEVICE]) for _ in range(2))
    return [lambda: a @ b]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", PASSES if DEVICE == "cuda" else ["all"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_reflect_conv(benchmark: BenchmarkFixture, shape: tuple[int, ...], direction: str, provider: str) -> None:
    N, C, H, W, O, k = shape
    dtype = str(DTYPE[DEVICE]).removeprefix("torch.")
    benchmark.group = f"reflect_conv2d {k}x{k} {C} to {O}, {N} of {H}x{W}, {direction}, {dtype}, {DEVICE}"
    if provider == "compiled" and (shape not in COMPILED or (reason := why_not_compiled(torch.device(DEVICE)))):
        pytest.skip("compiled is timed at fewer pictures" if shape not in COMPILED else reason)
    if provider == "matmul":
        size = 8192 if DEVICE == "cuda" else 512
        benchmark.extra_info.update(provider=provider, flops=2 * size**3, operations=1, dtype=dtype)
        benchmark.pedantic(one_round(matmul_steps, DEVICE), rounds=5 if DEVICE == "cpu" else 30, warmup_rounds=2)
        return
    given, f = inputs(shape), function(provider)
    if provider == "cudnn":
        given = [(F.pad(x, (k // 2,) * 4, mode="reflect").contiguous(memory_format=torch.channels_last), w, dy) for x, w, dy in given]
    else:
        check(provider, f, *given[0])
    flops = 2 * N * H * W * C * O * k * k * (3 if direction == "all" else 1)
    benchmark.extra_info.update(provider=provider, flops=flops * len(given), operations=len(given), dtype=dtype)
    if direction == "all" and provider in ("ours", "cudnn_padded"):
        key = backend_key("reflect_conv", DTYPE[DEVICE], N, 1, H * W, C, O, k)
        benchmark.extra_info.update(backend_key=key, backend="triton" if provider == "ours" else "cudnn")
    run = one_round(lambda: steps(f, given, direction), DEVICE)
    benchmark.pedantic(run, rounds=5 if DEVICE == "cpu" else 30, warmup_rounds=2)


@pytest.mark.skipif(DEVICE != "cuda", reason="the kernels run on an NVIDIA GPU")
@pytest.mark.parametrize("direction", ["forward", "forward, bordered", "dgrad", "wgrad"])
@pytest.mark.parametrize("images", [4, 2, 1])
def bench_products_of_the_block(benchmark: BenchmarkFixture, images: int, direction: str) -> None:
    """The products as the residual block launches them. Their results are held by tests/kernels; here they are timed alone."""
    from fastcyclegan.kernels import reflect_conv_launch as host
    from fastcyclegan.kernels.border_launch import Pixels
    from fastcyclegan.kernels.reflect_conv_passes import empty_gradients, weight_gradients

    C, H, W = 256, 64, 64
    group = direction.split(",")[0]
    benchmark.group = f"reflect_conv2d 3x3 {C} to {C}, {images} of {H}x{W}, {group}, bfloat16, cuda"

    def make() -> list[Callable[[], Any]]:
        count = rotations(2 * C * images * H * W * 2, DEVICE)
        weight = torch.randn(1, C, 3, 3, C, device=DEVICE, dtype=torch.bfloat16) / 48
        layers = [w.permute(0, 3, 1, 2) for w in weight]

        def one() -> Callable[[], Any]:
            x = torch.randn(images, C, H, W, device=DEVICE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
            inside, rows = (H + 2) * (W + 2), (H + 2) * (W + 4)
            buffers = (torch.randn(images, size, C, device=DEVICE, dtype=torch.bfloat16) for size in (inside, rows))
            bordered, packed = (Pixels(t, images, size, W + 2, size, C) for t, size in zip(buffers, (inside, rows), strict=True))
            into = list(empty_gradients(layers, [True]))
            return {
                "forward": lambda: host.product_and_moments(Pixels.of(x), weight, (H, W), host.Options(host.REFLECT, 1, (H, W))),
                "forward, bordered": lambda: host.product_and_moments(bordered, weight, (H, W)),
                "dgrad": lambda: host.product(packed, weight, (H, W), host.Options(host.FOLDED, transposed=True)),
                "wgrad": lambda: weight_gradients(packed, bordered, H, layers, [True], into, False),
            }[direction]

        return [one() for _ in range(count)]

    made = make()
    benchmark.extra_info.update(
        provider=f"in_the_block, {direction}", flops=2 * images * H * W * C * C * 9 * len(made), operations=len(made)
    )
    benchmark.pedantic(one_round(lambda: made, DEVICE), rounds=30, warmup_rounds=2)
