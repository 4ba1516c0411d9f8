"""The residual block, forward and backward: PyTorch eager and compiled, our norms around cuDNN's
convolutions, and the one operator.

On a GPU in bf16 at 64 x 64 x 256 and 1 to 16 pictures; on a CPU a reduced block in fp32, where ours is what
impl="auto" takes. What the timed rounds wrote is held to float64. Rows of forward and backward together say
which backend is the faster one for a shape.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.bench_reflect_conv import DTYPE, STRIDE_1
from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, compiled, products
from bench.timing import Entrant, Race, clock, rotations
from fastcyclegan.kernels import instance_norm, residual_block, residual_block_ref
from fastcyclegan.kernels.backend_table import backend_key
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.reference import ContiguousGradient

SHAPES = {
    "cuda": [(4, 256, 64, 64), (2, 256, 64, 64), (1, 256, 64, 64), (16, 256, 64, 64)],
    "cpu": [(1, 32, 32, 32)],
}
PROVIDERS = (
    ["matmul", "eager", "compiled", "ours"]
    if DEVICE == "cpu"
    else ["matmul", "eager", "compiled", "cudnn_padded", "ours"]
)

# On a GPU torch's compiler looks for the best convolutions.
pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=20, cuda=45)]


def eager(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    y = F.relu(
        ContiguousGradient.apply(F.instance_norm(F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight1)))
    )
    return x + ContiguousGradient.apply(
        F.instance_norm(F.conv2d(F.pad(y, (1,) * 4, mode="reflect"), weight2))
    )


def around_cudnn(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    c1 = norm_conv(x, weight1, None, STRIDE_1, norm=False, border=1)
    c2 = norm_conv(c1, weight2, None, STRIDE_1, act="relu", border=1)
    return instance_norm(c2, residual=x, impl="triton")


def function(provider: str) -> Operator:
    if provider == "compiled":
        return compiled(residual_block_ref)
    impl = "triton" if DEVICE == "cuda" else "auto"
    return {"eager": eager, "cudnn_padded": around_cudnn, "ours": lambda *t: residual_block(*t, impl=impl)}[
        provider
    ]


def entrant(provider: str, case: Case, flops: int, fault: bool) -> Entrant:
    if provider == "matmul":
        return products(DTYPE[DEVICE])
    info: dict[str, object] = {"flops": flops * len(case.given)}
    if case.direction == "all" and provider in ("ours", "cudnn_padded"):
        N, C, H, W = case.given[0][0].shape
        key = backend_key("residual_block", DTYPE[DEVICE], N, 1, H * W, C, C, 3)
        info |= {"backend_key": key, "backend": "triton" if provider == "ours" else "cudnn"}
    return case.entrant(provider, function(provider), fault and provider == "ours", **info)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", ["forward", "all"])
@pytest.mark.parametrize("shape", SHAPES[DEVICE], ids=lambda s: "x".join(map(str, s)))
def bench_residual_block(
    race: Race, fault: bool, shape: tuple[int, ...], direction: str, provider: str
) -> None:
    N, C, H, W = shape
    dtype = DTYPE[DEVICE]
    torch.manual_seed(0)

    def one() -> tuple[Tensor, ...]:
        weights = (channels_last(C, C, 3, 3, dtype=dtype) / (9 * C) ** 0.5 for _ in range(2))
        return channels_last(*shape, dtype=dtype), *weights, channels_last(*shape, dtype=dtype)

    case = Case(
        eager,
        [one() for _ in range(rotations(2 * torch.Size(shape).numel() * dtype.itemsize, DEVICE))],
        direction,
    )
    flops = 2 * 2 * N * H * W * C * C * 9 * (3 if direction == "all" else 1)
    group = f"residual block, {N} of {H}x{W}x{C}, {direction}, {str(dtype).removeprefix('torch.')}, {DEVICE}"
    race(group, {p: lambda p=p: entrant(p, case, flops, fault) for p in PROVIDERS}, ROUNDS[DEVICE], seconds=5)  # type: ignore[misc]
