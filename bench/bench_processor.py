"""Benchmark the operators that a processor computes in C++: norms, convolutions, the residual block.

The providers are PyTorch eager on channels_last, and fastcyclegan's kernels ("cpp", impl="cpp"). Forward
alone, their weights are laid out in advance, as they are when a network is used repeatedly. With gradients,
they are not, as in training. A copy of the same number of bytes, or a large matrix product in the same dtype,
is measured alongside them as the ceiling. The kernels for 3x3 convolutions and their gradients multiply less
than the definition, so their rate can be above that ceiling.

The shapes are those of the default generator at 256x256: its residual blocks, and its first and last layers,
which are 7x7. Of the convolutions, the gradient of the image (dgrad) and that of the weight (wgrad) are timed
one by one. All are timed in fp32 and, on processors that have instructions for it, in bf16. The results of
the timed rounds are compared with float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, copies, products
from bench.timing import Entrant, Race, Unavailable, builders_of, clock, rotations
from fastcyclegan.engine import resolve_precision
from fastcyclegan.kernels import instance_norm, reflect_conv2d, residual_block
from fastcyclegan.kernels.cpu.forms import WeightForms
from fastcyclegan.kernels.cpu.library import why_not_cpp
from fastcyclegan.reference import contiguous_gradient

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What is timed: the direction of its Case, and the arguments whose gradients are computed.
WORK: dict[str, tuple[str, tuple[int, ...]]] = {
    "forward": ("forward", ()),
    "backward": ("backward", (0,)),
    "dgrad": ("backward", (0,)),
    "wgrad": ("backward", (1,)),
    "forward and backward": ("all", ()),
}

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(4),
    pytest.mark.cost(cpu=8, cuda=0),
    pytest.mark.skipif(DEVICE == "cuda", reason="these kernels are for processors"),
]


@dataclass(frozen=True)
class Shape:
    """An operator on one image [1, C, side, side], with weights [O, C, k, k] unless it is a norm.

    ``op`` is a key of EAGER, and ``work`` one of WORK.
    """

    op: str
    C: int
    side: int
    O: int = 0
    k: int = 0
    work: str = "forward"

    @property
    def title(self) -> str:
        size = f"{self.side}x{self.side}x{self.C}"
        if self.op == "reflect_conv2d":
            size = f"{self.side}x{self.side}"
            return f"reflect_conv2d {self.k}x{self.k} {self.C} to {self.O}, 1 of {size}, {self.work}"
        return f"{self.op}, 1 of {size}, {self.work}"

    @property
    def name(self) -> str:
        """A short name for pytest."""
        name = f"{self.op.partition(' ')[0]}-{self.k}-{self.C}-{self.O}-{self.side}"
        return name if self.work == "forward" else f"{name}-{self.work.replace(' ', '-')}"

    @property
    def weights(self) -> int:
        """The number of its weights."""
        return {"instance norm + ReLU": 0, "reflect_conv2d": 1, "residual block": 2}[self.op]

    def moved(self, dtype: torch.dtype) -> int:
        """Return the bytes that a norm reads (each image twice) and writes."""
        images = 3 if self.work == "forward" else 5
        return images * self.C * self.side**2 * dtype.itemsize

    @property
    def flops(self) -> int:
        """Floating-point operations. Each of a convolution's gradients has as many as its forward."""
        passes = 3 if self.work == "forward and backward" else 1
        return 2 * passes * self.weights * self.side**2 * self.C * self.O * self.k**2


BLOCK = Shape("residual block", 256, 64, 256, 3)
SINGLE = [
    Shape("reflect_conv2d", 256, 64, 256, 3),
    Shape("reflect_conv2d", 64, 256, 3, 7),
    Shape("reflect_conv2d", 3, 256, 64, 7),
]
CONVOLUTIONS = [*SINGLE, BLOCK]
NORMS = [Shape("instance norm + ReLU", 256, 64), Shape("instance norm + ReLU", 64, 256)]
# The same in training.
TRAINED = [replace(shape, work=work) for shape in SINGLE for work in ("dgrad", "wgrad")]
TRAINED.append(replace(BLOCK, work="forward and backward"))
TRAINED_NORMS = [replace(shape, work="backward") for shape in NORMS]


def eager_norm(x: Tensor) -> Tensor:
    return F.relu(contiguous_gradient(F.instance_norm(x)))


def eager_conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (weight.shape[2] // 2,) * 4, mode="reflect"), weight)


def eager_block(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    return x + contiguous_gradient(F.instance_norm(eager_conv(eager_norm(eager_conv(x, weight1)), weight2)))


EAGER: dict[str, Operator] = {
    "instance norm + ReLU": eager_norm,
    "reflect_conv2d": eager_conv,
    "residual block": eager_block,
}


def kernel(op: str, keeps_forms: bool) -> Operator:
    """Return the C++ kernel of ``op``. It keeps the forms of its weights if ``keeps_forms``."""
    functions: dict[str, Callable[..., Tensor]] = {
        "instance norm + ReLU": lambda x: instance_norm(x, act="relu", impl="cpp"),
        "reflect_conv2d": lambda x, w: reflect_conv2d(x, w, padding=w.shape[2] // 2, impl="cpp"),
        "residual block": lambda x, w1, w2: residual_block(x, w1, w2, impl="cpp"),
    }
    if not keeps_forms:
        return functions[op]
    # One for each weight, because the forms that one call does not use are dropped at its end.
    forms: dict[int, WeightForms] = {}

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        with forms.setdefault(x.data_ptr(), WeightForms()):
            return functions[op](x, *weights)

    return run


def entrant(provider: str, shape: Shape, case: Case, dtype: torch.dtype, fault: bool) -> Entrant:
    count = len(case.inputs)
    if provider in ("copy", "matmul"):
        return copies(shape.moved(dtype), count) if provider == "copy" else products(dtype)
    if provider == "cpp" and (reason := why_not_cpp()):
        raise Unavailable(f"impl='cpp' {reason}")
    info = {"flops": shape.flops * count} if shape.weights else {"bytes": shape.moved(dtype) * count}
    function = kernel(shape.op, shape.work == "forward") if provider == "cpp" else EAGER[shape.op]
    return case.entrant(provider, function, fault and provider == "cpp", **info)


def inputs(shape: Shape, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Return tuples of x, the weights and the gradient of the result, to be used in turn."""
    torch.manual_seed(0)

    def one() -> tuple[Tensor, ...]:
        x = channels_last(1, shape.C, shape.side, shape.side, dtype=dtype)
        weights = []
        for _ in range(shape.weights):
            weight = channels_last(shape.O, shape.C, shape.k, shape.k, dtype=dtype)
            weights.append(weight / (shape.C * shape.k**2) ** 0.5)
        outputs = shape.O if shape.weights else shape.C
        return x, *weights, channels_last(1, outputs, shape.side, shape.side, dtype=dtype)

    return [one() for _ in range(rotations(2 * shape.C * shape.side**2 * dtype.itemsize, DEVICE))]


def run(race: Race, quick: bool, fault: bool, shape: Shape, precision: str, providers: list[str]) -> None:
    """Time ``shape`` by ``providers`` in ``precision``, "fp32" or "bf16"."""
    if precision == "bf16" and resolve_precision("auto", torch.device("cpu"), compiled=True) != "bf16":
        pytest.skip("this processor has no bf16 instructions")
    if quick:
        shape = replace(shape, side=16)
    dtype = DTYPES[precision]
    case = Case(EAGER[shape.op], inputs(shape, dtype), *WORK[shape.work])
    builders = builders_of(providers, lambda p: entrant(p, shape, case, dtype, fault))
    race(f"{shape.title}, {precision}, {DEVICE}", builders, ROUNDS[DEVICE], seconds=3)


@pytest.mark.parametrize("provider", ["matmul", "eager", "cpp"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=lambda shape: shape.name)
def bench_convolutions(
    race: Race, quick: bool, fault: bool, shape: Shape, precision: str, provider: str
) -> None:
    run(race, quick, fault, shape, precision, ["matmul", "eager", "cpp"])


@pytest.mark.parametrize("provider", ["copy", "eager", "cpp"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", NORMS, ids=lambda shape: shape.name)
def bench_norms(race: Race, quick: bool, fault: bool, shape: Shape, precision: str, provider: str) -> None:
    run(race, quick, fault, shape, precision, ["copy", "eager", "cpp"])


@pytest.mark.telling(5)
@pytest.mark.cost(cpu=12, cuda=0)
@pytest.mark.parametrize("provider", ["matmul", "eager", "cpp"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", TRAINED, ids=lambda shape: shape.name)
def bench_convolutions_in_training(
    race: Race, quick: bool, fault: bool, shape: Shape, precision: str, provider: str
) -> None:
    run(race, quick, fault, shape, precision, ["matmul", "eager", "cpp"])


@pytest.mark.telling(5)
@pytest.mark.cost(cpu=12, cuda=0)
@pytest.mark.parametrize("provider", ["copy", "eager", "cpp"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", TRAINED_NORMS, ids=lambda shape: shape.name)
def bench_norms_in_training(
    race: Race, quick: bool, fault: bool, shape: Shape, precision: str, provider: str
) -> None:
    run(race, quick, fault, shape, precision, ["copy", "eager", "cpp"])
