"""Benchmark reflection-padded convolutions, pass by pass.

The providers are PyTorch eager and compiled, cuDNN without padding, cuDNN with fastcyclegan's padding, and
fastcyclegan's kernels.

On a GPU they run in bf16 at the generator's shapes with 1 to 16 images, next to a matrix product measured in
the same group. On a CPU there is one reduced shape in fp32, where "ours" is the implementation that
impl="auto" selects. Rates are in GFLOP/s. "cudnn" receives the padded image and returns the padded gradient,
so it does less work than the others. "cudnn_padded" is the backend that fastcyclegan's networks can use
instead of the kernels. "in_the_block" runs the matrix products as a residual block launches them, on buffers
like those that its norms write. The results of the timed rounds are compared with float64.

The rows for forward and backward together show for which shapes cuDNN is the faster backend;
scripts/gpu_suite.py builds the table of backends from them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, compiled, products
from bench.timing import Entrant, Race, Steps, Unavailable, builders_of, clock, rotations
from fastcyclegan.kernels import reflect_conv2d
from fastcyclegan.kernels.backend_table import backend_key
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.testing import packed_gradient

# N, C, H, W, O, k. The residual convolution with 4 and 2 images comes first, then the first and last layers.
SHAPES = {
    "cuda": [
        (4, 256, 64, 64, 256, 3), (2, 256, 64, 64, 256, 3), (1, 256, 64, 64, 256, 3), (1, 64, 256, 256, 3, 7),
        (4, 64, 256, 256, 3, 7),
        (1, 3, 256, 256, 64, 7), (4, 3, 256, 256, 64, 7), (16, 256, 64, 64, 256, 3),
    ],
    "cpu": [(1, 32, 32, 32, 32, 3)],
}  # fmt: skip
# Only these shapes are compiled, because autotuning takes PyTorch's compiler half a minute per shape.
COMPILED = [SHAPES["cuda"][i] for i in (0, 1, 3, 5)] + SHAPES["cpu"]
DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}
# The timed passes. "dgrad" and "wgrad" compute only the gradient of the argument with this index.
PASSES = {"all": (), "forward": (), "dgrad": (0,), "wgrad": (1,)}
PROVIDERS = {
    "cuda": ["matmul", "eager", "compiled", "cudnn", "cudnn_padded", "ours"],
    "cpu": ["matmul", "eager", "compiled", "ours"],
}
# The implementation that "ours" uses. BACKENDS are the providers whose times go into the table of backends.
IMPL = {"cuda": "triton", "cpu": "auto"}
BACKENDS = {"ours": "triton", "cudnn_padded": "cudnn"}
STRIDE_1: Any = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=15, cuda=40)]


def eager(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(padded(x, weight), weight)


def padded(x: Tensor, weight: Tensor) -> Tensor:
    return F.pad(x, (weight.shape[2] // 2,) * 4, mode="reflect")


def padded_by_us(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve ``x`` with cuDNN, after padding it with fastcyclegan's reflection padding."""
    return norm_conv(x, weight, None, STRIDE_1, norm=False, border=weight.shape[2] // 2)


def ours(x: Tensor, weight: Tensor) -> Tensor:
    return reflect_conv2d(x, weight, padding=weight.shape[2] // 2, impl=IMPL[DEVICE])


def function(provider: str, shape: tuple[int, ...]) -> Operator:
    if provider == "compiled":
        if shape not in COMPILED:
            raise Unavailable("compiled is only timed for selected shapes")
        return compiled(eager)
    functions: dict[str, Operator] = {
        "eager": eager,
        "cudnn": F.conv2d,
        "cudnn_padded": padded_by_us,
        "ours": ours,
    }
    return functions[provider]


def inputs(shape: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
    """Return tuples of x, weight and dy that are used in turn.

    There are enough of them that none is still in the L2 cache when it is used again.
    """
    N, C, H, W, O, k = shape
    dtype = DTYPE[DEVICE]
    torch.manual_seed(0)

    def one() -> tuple[Tensor, ...]:
        weight = channels_last(O, C, k, k, dtype=dtype) / (C * k * k) ** 0.5
        return channels_last(N, C, H, W, dtype=dtype), weight, channels_last(N, O, H, W, dtype=dtype)

    return [one() for _ in range(rotations((C + O) * N * H * W * dtype.itemsize, DEVICE))]


def direction_of(name: str) -> str:
    if name in ("all", "forward"):
        return name
    return "backward"


def entrant(provider: str, case: Case, shape: tuple[int, ...], flops: int, fault: bool) -> Entrant:
    N, C, H, W, O, k = shape
    if provider == "matmul":
        return products(DTYPE[DEVICE])
    info: dict[str, Any] = {"flops": flops * len(case.inputs)}
    if provider == "cudnn":
        with_padding: list[tuple[Tensor, ...]] = []
        for x, weight, dy in case.inputs:
            with_padding.append((padded(x, weight).contiguous(memory_format=torch.channels_last), weight, dy))
        case = Case(F.conv2d, with_padding, case.direction, case.needed)
    if case.direction == "all" and provider in BACKENDS:
        info["backend_key"] = backend_key("reflect_conv", DTYPE[DEVICE], N, 1, H * W, C, O, k)
        info["backend"] = BACKENDS[provider]
    return case.entrant(provider, function(provider, shape), fault and provider == "ours", **info)


@pytest.mark.parametrize("provider", PROVIDERS[DEVICE])
@pytest.mark.parametrize("direction", PASSES if DEVICE == "cuda" else ["all"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_reflect_conv(
    race: Race, fault: bool, shape: tuple[int, ...], direction: str, provider: str
) -> None:
    N, C, H, W, O, k = shape
    case = Case(eager, inputs(shape), direction_of(direction), PASSES[direction])
    flops = 2 * N * H * W * C * O * k * k
    if direction == "all":
        flops *= 3
    dtype = str(DTYPE[DEVICE]).removeprefix("torch.")
    group = f"reflect_conv2d {k}x{k} {C} to {O}, {N} of {H}x{W}, {direction}, {dtype}, {DEVICE}"
    builders = builders_of(PROVIDERS[DEVICE], lambda p: entrant(p, case, shape, flops, fault))
    race(group, builders, ROUNDS[DEVICE], seconds=5)


# --- The matrix products of the residual block --------------------------------------------------------------


def in_the_block(
    name: str, tensors: list[tuple[Tensor, ...]]
) -> Callable[[], list[Callable[[], tuple[Tensor, ...]]]]:
    """Return a factory of functions that run product ``name`` as a residual block launches it.

    The factory returns one function for each of ``tensors``, and allocates the buffers in advance.
    """
    from fastcyclegan.kernels import _products as host
    from fastcyclegan.kernels._weights import empty_gradients
    from fastcyclegan.kernels.border_launch import Pixels, reflect_pad
    from fastcyclegan.kernels.reflect_conv_passes import weight_gradients

    def one(x: Tensor, weight: Tensor, dy: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        N, C, H, W = x.shape
        stack = weight.permute(0, 2, 3, 1).contiguous()[None]
        image, inside, rows = reflect_pad(x, 1).permute(0, 2, 3, 1), (H + 2) * (W + 2), (H + 2) * (W + 4)
        bordered = Pixels(image.reshape(N, inside, C), N, inside, W + 2, inside, C)
        packed = Pixels(packed_gradient(dy).contiguous(), N, rows, W + 2, rows, C)
        layers = [w.permute(0, 3, 1, 2) for w in stack]
        into = list(empty_gradients(layers, [True]))

        def forward() -> tuple[Tensor, ...]:
            reflecting = host.Options(host.REFLECT, 1, (H, W))
            y, *_ = host.product_and_moments(Pixels.of(x), stack, (H, W), reflecting)
            return (y,)

        def forward_bordered() -> tuple[Tensor, ...]:
            y, *_ = host.product_and_moments(bordered, stack, (H, W))
            return (y,)

        def dgrad() -> tuple[Tensor, ...]:
            return (host.product(packed, stack, (H, W), host.Options(host.FOLDED, transposed=True)),)

        def wgrad() -> tuple[Tensor, ...]:
            weight_gradients(packed, bordered, H, layers, [True], into, False)
            return (into[0],)

        passes: dict[str, Callable[[], tuple[Tensor, ...]]] = {
            "forward": forward,
            "forward, bordered": forward_bordered,
            "dgrad": dgrad,
            "wgrad": wgrad,
        }
        return passes[name]

    return lambda: [one(*each) for each in tensors]


@pytest.mark.skipif(DEVICE != "cuda", reason="the kernels run on an NVIDIA GPU")
@pytest.mark.parametrize("provider", ["matmul", "eager", "in_the_block"])
@pytest.mark.parametrize("direction", ["forward", "forward, bordered", "dgrad", "wgrad"])
@pytest.mark.parametrize("images", [4, 2, 1])
def bench_products_of_the_block(race: Race, images: int, direction: str, provider: str) -> None:
    C, side, kind = 256, 64, direction.partition(",")[0]
    case = Case(eager, inputs((images, C, side, side, C, 3)), direction_of(kind), PASSES[kind])
    flops = 2 * images * side**2 * C * C * 9 * len(case.inputs)

    def product() -> Entrant:
        steps = Steps(in_the_block(direction, case.inputs), DEVICE)
        info = {"flops": flops, "operations": len(case.inputs)}
        return Entrant(steps, lambda: case.check("in_the_block", steps.results), info)

    builders = {
        "matmul": lambda: products(DTYPE[DEVICE]),
        "eager": lambda: case.entrant("eager", eager, flops=flops),
        "in_the_block": product,
    }
    group = f"product of the residual block, {images} of {side}x{side}x{C}, {direction}, bfloat16, cuda"
    race(group, builders, ROUNDS[DEVICE], seconds=5)
