"""Tests of convolutions of small maps as products: parity with float64, layouts, and when they are used."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels._convolution import AtenConvolution, Convolution
from fastcyclegan.kernels.cpu import convolution, small_maps
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.processor import BF16, FP32, images

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@dataclass(frozen=True)
class Case:
    why: str
    conv: AtenConvolution
    weight: tuple[int, int, int, int]
    sides: tuple[int, int]
    images: int = 1


CASES = [
    Case("a U-Net's way down", Convolution(2, 1).aten, (24, 16, 4, 4), (8, 8)),
    Case("a U-Net's way up", Convolution(2, 1, True).aten, (24, 16, 4, 4), (4, 4)),
    Case("one pixel, as at the bottom", Convolution(2, 1, True).aten, (24, 16, 4, 4), (1, 1)),
    Case("two images, more rows than columns", Convolution(2, 1).aten, (8, 12, 4, 4), (6, 4), 2),
    Case("a row and a column that no window reaches", Convolution(2, 0).aten, (8, 12, 4, 4), (7, 9)),
    Case("more rows than windows write", Convolution(2, 1, True, 1).aten, (8, 12, 3, 3), (3, 2), 2),
    Case("windows side by side", Convolution(1, 1).aten, (8, 12, 3, 3), (4, 5)),
    Case("a pixel by itself", Convolution(1, 0).aten, (8, 12, 1, 1), (2, 3)),
    Case("unequal sides", AtenConvolution([2, 1], [1, 0], [1, 1], False, [0, 0], 1), (8, 12, 4, 3), (6, 5)),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def any_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the products for weights of any size."""
    monkeypatch.setattr(small_maps, "_LARGE_WEIGHT", 0)


def _operands(case: Case, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image, a weight in fp32, and the gradient of their convolution."""
    weight = torch.randn(case.weight).contiguous(memory_format=layout)
    channels = case.weight[0] if case.conv.transposed else case.weight[1]
    x = images(case.images, channels, *case.sides, dtype=dtype)
    return x, weight, images(*case.conv.out_shape(x, weight), dtype=dtype)


def _by_pytorch(case: Case, x: Tensor, weight: Tensor, g: Tensor) -> list[Tensor]:
    """Return the output and the gradients of x and of the weight."""
    sizes = case.conv.flat()
    mask = [True, True, False]
    out = torch.ops.aten.convolution(x, weight, None, *sizes)
    return [out, *torch.ops.aten.convolution_backward(g, x, weight, None, *sizes, mask)[:2]]


def _by_products(case: Case, x: Tensor, weight: Tensor, g: Tensor) -> list[Tensor]:
    if not case.conv.transposed:
        out = small_maps.gather(x, weight, case.conv)
        dx = small_maps.scatter(g, x.shape[2:], weight, case.conv)
        return [out, dx, small_maps.weight_gradient(g, x, weight, case.conv)]
    out = small_maps.scatter(x, g.shape[2:], weight, case.conv)
    dx = small_maps.gather(g, weight, case.conv)
    return [out, dx, small_maps.weight_gradient(x, g, weight, case.conv)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, FP32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_products_equal_float64(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype], layout: torch.memory_format
) -> None:
    dtype, weight_dtype = dtypes
    x, weight, g = _operands(case, dtype, layout)
    weight = weight.to(weight_dtype)
    # PyTorch rounds the weight of a bf16 image.
    pytorch = _by_pytorch(case, x, weight.to(dtype), g)
    truth = _by_pytorch(case, x.double(), weight.double(), g.double())
    with torch.autocast("cpu", BF16, enabled=dtype == BF16):
        ours = _by_products(case, x, weight, g)
    for name, y, theirs, exact in zip(("out", "dx", "dweight"), ours, pytorch, truth, strict=True):
        assert_parity(name, y, theirs, exact, dtype)
    out, dx, dweight = ours
    assert (out.dtype, dx.dtype) == (dtype, dtype)
    assert dweight.dtype in (weight_dtype, FP32)
    assert dweight.stride() == weight.stride()
    for y in (out, dx):
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_fp32_weights_are_not_rounded(layout: torch.memory_format) -> None:
    """Otherwise each use of a large weight would take another pass over it."""
    x, weight, g = _operands(CASES[0], BF16, layout)
    ours = _by_products(CASES[0], x, weight, g)
    for y, exact in zip(ours, _by_products(CASES[0], x.float(), weight, g.float()), strict=True):
        assert_same_bits("rounded once", y, exact.to(y.dtype))


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.why)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("into_layout", LAYOUTS, ids=str)
def test_gradients_are_added_in_place(
    case: Case, layout: torch.memory_format, into_layout: torch.memory_format
) -> None:
    x, weight, g = _operands(case, FP32, layout)
    small, large = (x, g) if case.conv.transposed else (g, x)
    before = torch.randn(case.weight).contiguous(memory_format=into_layout)
    into = before.clone()
    small_maps.add_weight_gradient(into, small, large, weight, case.conv)
    exact = before.double() + _by_pytorch(case, x.double(), weight.double(), g.double())[2]
    assert_parity("sum", into, before + _by_pytorch(case, x, weight, g)[2], exact, FP32)


def test_only_large_weights_and_small_maps_are_served() -> None:
    weight = torch.empty(512, 512, 4, 4)
    conv = Convolution(2, 1).aten
    assert small_maps.serves((1, 512, 8, 8), weight, conv)
    assert small_maps.serves((1, 512, 8, 8), weight.to(memory_format=torch.channels_last), conv)
    assert not small_maps.serves((1, 512, 16, 16), weight, conv)
    assert not small_maps.serves((4, 512, 8, 8), weight, conv)
    assert not small_maps.serves((0, 512, 8, 8), weight, conv)
    assert not small_maps.serves((1, 512, 8, 8), weight[:8], conv)
    assert not small_maps.serves((1, 512, 8, 8), weight.transpose(0, 1), conv)
    dilated = AtenConvolution([1, 1], [1, 1], [2, 2], False, [0, 0], 1)
    assert not small_maps.serves((1, 512, 8, 8), weight, dilated)
    grouped = AtenConvolution([1, 1], [1, 1], [1, 1], False, [0, 0], 2)
    assert not small_maps.serves((1, 512, 8, 8), weight, grouped)


@pytest.mark.usefixtures("any_weight")
@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_use_the_products(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward, also with a bias, and for both gradients, also if one is added in place."""
    case = CASES[1] if transposed else CASES[0]
    x, weight, g = _operands(case, FP32, torch.channels_last)
    bias = torch.randn(g.shape[1])
    used: list[str] = []
    for name in ("gather", "scatter", "weight_gradient", "add_weight_gradient"):
        function = getattr(small_maps, name)
        monkeypatch.setattr(small_maps, name, lambda *a, n=name, f=function: used.append(n) or f(*a))
    out = convolution.norm_convolve(x, None, 0, weight, bias, case.conv).out
    pytorch, *_ = _by_pytorch(case, x, weight, g)
    exact, *_ = _by_pytorch(case, x.double(), weight.double(), g.double())
    column = bias.view(-1, 1, 1)
    assert_parity("out", out, pytorch + column, exact + column.double(), FP32)
    saved = convolution.NormConvSaved(
        x,
        convolution.Norm(),
        *(x.new_empty(0),) * 2,
        weight,
        x.new_empty(0),
        0,
        [True, True, True],
        case.conv,
    )
    convolution.gradients(g, saved)
    convolution.gradients(g, saved, into=torch.zeros_like(weight))
    first, second = ("scatter", "gather") if transposed else ("gather", "scatter")
    backward = ["weight_gradient", second, "add_weight_gradient", second]
    assert used == [first, *backward]
