"""Test cases of zero-padded convolutions, and helpers to run them, shared by several test files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.kernels.zero_conv import zero_conv, zero_conv_ref
from fastcyclegan.testing import assert_parity

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1
    up: int | None = None  # output_padding of a transposed convolution
    P: int = 1
    bias: bool = False
    act: str | None = None  # with None, there is no norm either
    dtypes: tuple[torch.dtype, ...] = (FP32,)

    @property
    def options(self) -> dict[str, Any]:
        norm = {} if self.act is None else {"norm": True, "act": self.act, "slope": 0.1}
        up = {} if self.up is None else {"transposed": True, "output_padding": self.up}
        return {"stride": self.stride, "padding": self.padding, **norm, **up}


# In the interpreter, tiles have 32 pixels, 32 output channels and 64 input channels, or a quarter of a larger
# size. Weight gradients take 64 pixels per step, in two splits. Values of kernel x stride x padding between
# the extremes are left out, because taps and phases are counted in the same way for all of them.
CASES = [
    Case("down, two weights, two images each", (4, 12, 6, 8), 20, P=2, bias=True, dtypes=(FP32, FP16)),
    Case("down, with the norm, odd sides", (2, 20, 7, 9), 12, P=2, act="relu", dtypes=(FP32, FP16)),
    Case(
        "down, several tiles in each direction, the last of each partly filled",
        (1, 70, 13, 19),
        40,
        bias=True,
    ),
    Case("down, a wide image: steps of a weight gradient side by side", (2, 9, 3, 150), 10),
    Case("up, two weights, with the norm", (2, 20, 4, 5), 12, up=1, P=2, act="relu", dtypes=(FP32, FP16)),
    Case("up, two weights, two images each", (4, 12, 3, 4), 9, up=1, P=2, bias=True),
    Case("up, no output_padding: the phases differ in size", (1, 40, 9, 10), 70, up=0),
    Case(
        "PatchGAN's first: from images of three channels",
        (2, 3, 10, 8),
        16,
        4,
        P=2,
        bias=True,
        dtypes=(FP32, FP16),
    ),
    Case("PatchGAN's first: one channel, odd sides", (2, 1, 9, 7), 12, 4, bias=True),
    Case(
        "PatchGAN's middle, with the norm", (2, 16, 8, 10), 24, 4, P=2, act="leaky_relu", dtypes=(FP32, FP16)
    ),
    Case(
        "PatchGAN's second to last: an even kernel with stride 1",
        (2, 12, 6, 5),
        20,
        4,
        1,
        P=2,
        act="leaky_relu",
    ),
    Case(
        "PatchGAN's last: to one channel",
        (4, 20, 6, 5),
        1,
        4,
        1,
        P=2,
        bias=True,
        act="leaky_relu",
        dtypes=(FP32, FP16),
    ),
    Case(
        "the narrowest generator: four channels up to eight, after a norm", (2, 4, 8, 6), 8, P=2, act="relu"
    ),
    Case("the narrowest generator: eight channels down to four, up", (2, 8, 3, 4), 4, up=1, P=2, act="relu"),
    Case("nine channels: one more than an image can have", (1, 9, 6, 6), 8),
    Case("to one channel at stride 2: not contracted", (1, 12, 6, 6), 1, bias=True),
    Case("to three channels, no padding: nothing to embed", (1, 12, 5, 6), 3, 3, 1, 0),
    Case("to three channels, padding = kernel - 1: the gradient has no margin", (1, 12, 5, 4), 3, 4, 1, 3),
    Case("from an image to an image", (1, 3, 5, 4), 4, 3, 1),
    Case("one by one: phases without a tap", (1, 12, 5, 4), 9, 1, 2, 0, bias=True),
    Case("one by one up, one column: a phase without a pixel", (1, 12, 3, 1), 9, 1, 2, 0, up=0, bias=True),
    Case("seven by seven, padding 6, more taps than pixels", (1, 9, 3, 4), 10, 7, 2, 6),
    Case("stride 2, unpadded: the last line and column are not read", (1, 10, 8, 6), 9, 3, 2, 0),
    Case("transposed at stride 1, two by two", (1, 10, 5, 4), 12, 2, 1, 1, up=0),
]
# Cases for tests that do not depend on sizes, one for each route.
DOWN = Case("down", (2, 9, 4, 5), 10, P=2, bias=True)
UP = Case("up, with the norm", (2, 10, 3, 2), 9, up=1, P=2, act="relu")
FIRST = Case("from images", (2, 3, 4, 5), 9, 4, P=2, bias=True)
LAST = Case("to images, with the norm", (2, 9, 4, 3), 1, 4, 1, P=2, bias=True, act="leaky_relu")
ROUTES = [DOWN, UP, FIRST, LAST]


def operands(
    case: Case, device: str, dtype: torch.dtype = FP32
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Return random operands for ``case``: x, the weights, the biases and an upstream gradient."""
    torch.manual_seed(0)
    C, k = case.shape[1], case.kernel
    shape = (C, case.out, k, k) if case.up is not None else (case.out, C, k, k)
    x = torch.randn(case.shape, device=device).contiguous(memory_format=torch.channels_last).to(dtype)
    weights = [torch.randn(shape, device=device).to(dtype) for _ in range(case.P)]
    biases = [torch.randn(case.out, device=device).to(dtype) for _ in range(case.P)] if case.bias else []
    meta = zero_conv_ref(x.to("meta"), [w.to("meta") for w in weights], [], **case.options)
    dy = torch.randn(meta.shape, device=device).contiguous(memory_format=torch.channels_last)
    return x, weights, biases, dy.to(dtype)


def results(
    run: Any, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], dy: Tensor
) -> dict[str, Tensor]:
    """Run the convolution ``run`` forward and backward, and return y and all gradients by name."""
    x, weights, biases = (
        x.detach().requires_grad_(),
        *([t.detach().requires_grad_() for t in ts] for ts in (weights, biases)),
    )
    y = run(x, weights, biases)
    y.backward(dy)
    gradients = {
        f"{name}[{i}]": t.grad
        for name, ts in (("dweight", weights), ("dbias", biases))
        for i, t in enumerate(ts)
    }
    return {"y": y.detach(), "dx": x.grad, **gradients}


def ours(case: Case, recompute: bool = True) -> Any:
    return lambda x, weights, biases: zero_conv(x, weights, biases, **case.options, recompute=recompute)


def by_pytorch(case: Case) -> Any:
    return lambda x, weights, biases: zero_conv_ref(x, weights, biases, **case.options)


def check(case: Case, device: str, dtype: torch.dtype, recompute: bool = True) -> None:
    x, weights, biases, dy = operands(case, device, dtype)
    got = results(ours(case, recompute), x, weights, biases, dy)
    baseline = results(by_pytorch(case), x, weights, biases, dy)
    truth = results(
        by_pytorch(case), x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    for name, result in got.items():
        assert_parity(name, result, baseline[name], truth[name], dtype)
    assert all(got[name].is_contiguous(memory_format=torch.channels_last) for name in ("y", "dx"))
