"""Test cases of reflection-padded convolutions, and helpers to run them, shared by several test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.kernels import reflect_conv2d, reflect_conv2d_ref
from fastcyclegan.testing import assert_parity

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 3
    padding: int = 1
    P: int = 1
    bias: bool = False
    dtypes: tuple[torch.dtype, ...] = (FP32,)


# In the interpreter, tiles have 32 pixels, 32 output channels and 64 input channels, or a quarter of a larger
# size.
CASES = [
    Case("the smallest map that reflects", (1, 20, 2, 2), 24, dtypes=(FP32, FP16, BF16)),
    Case("several tiles in each direction, the last of each partly filled", (1, 70, 7, 9), 40, bias=True),
    Case("a real width", (1, 256, 3, 3), 256),
    Case("two weights, two images each", (4, 12, 5, 3), 16, P=2, bias=True, dtypes=(FP32, FP16)),
    Case("three weights", (3, 16, 3, 4), 9, P=3),
    Case("padding = size - 1: a line is reflected from both sides", (1, 12, 4, 3), 12, padding=2),
    Case("no padding", (1, 12, 4, 5), 12, padding=0, bias=True),
    Case("padding of more than half the kernel: the map grows", (1, 12, 4, 4), 10, padding=3),
    Case("one by one", (1, 12, 4, 3), 12, kernel=1, padding=0),
    Case("five by five, smaller than the kernel before it is padded", (1, 10, 4, 3), 12, kernel=5, padding=2),
    Case(
        "from an image: seven by seven",
        (1, 3, 9, 6),
        64,
        kernel=7,
        padding=3,
        bias=True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("from images, two weights", (2, 3, 4, 5), 9, P=2, bias=True),
    Case(
        "to an image: seven by seven",
        (1, 64, 6, 9),
        3,
        kernel=7,
        padding=3,
        bias=True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("to images, two weights", (2, 20, 5, 4), 3, P=2, bias=True),
    Case("to one channel, one by one", (1, 12, 4, 4), 1, kernel=1, padding=0),
    Case("from an image to an image", (1, 3, 5, 4), 4, bias=True),
    Case("nine by nine windows, to several tiles", (1, 4, 7, 13), 12, kernel=9, padding=4),
]


# Cases for tests that do not depend on sizes.
SMALL = Case("two weights", (2, 9, 3, 4), 9, P=2, bias=True)
SMALL_IMAGES = [
    Case("from images", (2, 3, 3, 4), 9, P=2, bias=True),
    Case("to images", (2, 9, 3, 4), 3, P=2, bias=True),
]


def operands(
    case: Case, device: str, dtype: torch.dtype = FP32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Return random operands for ``case``: x, the weights, the biases and an upstream gradient."""
    torch.manual_seed(0)
    shape = (case.out, case.shape[1], case.kernel, case.kernel)
    x = torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype)
    weights = [torch.randn(shape, device=device).to(dtype) for _ in range(case.P)]
    biases = [torch.randn(case.out, device=device).to(dtype) for _ in range(case.P)] if case.bias else []
    y = reflect_conv2d_ref(x.float(), [w.float() for w in weights], padding=case.padding)
    return x, weights, biases, torch.randn(y.shape).to(x)


def results(
    run: Any, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dy: Tensor
) -> dict[str, Tensor]:
    """Run the convolution ``run`` forward and backward, and return y and all gradients by name."""
    x, weights, biases = (
        x.detach().requires_grad_(),
        *([t.detach().requires_grad_() for t in ts] for ts in (weights, biases)),
    )
    y = run(x, weights, biases or None)
    y.backward(dy)
    gradients = {
        f"{name}[{i}]": t.grad
        for name, ts in (("dweight", weights), ("dbias", biases))
        for i, t in enumerate(ts)
    }
    return {"y": y.detach(), "dx": x.grad, **gradients}


def ours(case: Case) -> Any:
    return lambda x, weights, biases: reflect_conv2d(x, weights, biases, padding=case.padding, impl="triton")


def by_pytorch(case: Case) -> Any:
    return lambda x, weights, biases: reflect_conv2d_ref(x, weights, biases, padding=case.padding)


def check(case: Case, device: str, dtype: torch.dtype) -> None:
    x, weights, biases, dy = operands(case, device, dtype)
    got = results(ours(case), x, weights, biases, dy)
    baseline = results(by_pytorch(case), x, weights, biases, dy)
    truth = results(
        by_pytorch(case), x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    for name, result in got.items():
        assert_parity(name, result, baseline[name], truth[name], dtype)
    assert got["y"].is_contiguous(memory_format=torch.channels_last)
    assert got["dx"].stride() == x.stride()
