"""Tests of the gradients of a norm with a convolution after it, whichever kernels compute them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm_ref
from fastcyclegan.kernels._calls import NormConvSaved
from fastcyclegan.kernels._convolution import Convolution
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import choice, convolution, functions
from fastcyclegan.kernels.cpu.convolution import By, norm_convolve
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.cases import LAYERS
from tests.kernels.cpu.processor import BF16, FP32, images, padded

OPERATORS = ("conv", "dgrad", "wgrad")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _gradients(
    case: dict[str, Any],
    operands: Sequence[Tensor],
    *,
    by: By,
    recompute: bool = True,
    needs: Sequence[bool] = (True, True, True),
    into: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return dx, dweight and dbias, and with a norm also its dweight and dbias, by ``gradients``."""
    x, weight, bias, g, *affine = operands
    conv, border = case.get("conv", Convolution()).aten, case.get("border", 0)
    norm = Norm(*affine, act="relu") if affine else None
    results = norm_convolve(x, norm, border, weight, bias, conv, by=by)
    y = x.new_empty(0) if recompute else results.y
    tensors = (x, *(affine if affine else (None, None)), results.mean, results.rstd, weight, y)
    saved = NormConvSaved.of(*tensors, "relu", 0.0, border, needs, *conv.flat())
    dx, dweight, dbias, total = convolution.gradients(g, saved, by=by, into=into)
    return dx, dweight, dbias, *([total[1].sum(0), total[0].sum(0)] if affine else [])


def _gradients_by_pytorch(
    case: dict[str, Any], operands: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in operands]
    x, weight, bias, g, *affine = leaves
    conv = case.get("conv", Convolution()).aten
    y = instance_norm_ref(x, *affine, act="relu") if affine else x
    y = torch.ops.aten.convolution(padded(y, case.get("border", 0), True), weight, bias, *conv.flat())
    return torch.autograd.grad(y, [x, weight, bias, *affine], g)


def _check(
    case: dict[str, Any], operands: Sequence[Tensor], dtype: torch.dtype, ours: Sequence[Tensor]
) -> None:
    """Assert that the gradients of ``operands`` obey the parity rule."""
    pytorch = _gradients_by_pytorch(case, operands, dtype)
    truth = _gradients_by_pytorch(case, operands, torch.float64)
    names = ("dx", "dweight", "dbias", "the norm's dweight", "the norm's dbias")
    for name, *results in zip(names[: len(ours)], ours, pytorch, truth, strict=True):
        assert_parity(name, *results, dtype)


def _operands(case: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """Return x, the weight and the bias, the gradient of the output, and a norm's weight and bias."""
    x, weight = images(*case["shape"], dtype=dtype), torch.randn(case["weight"]) / 5
    conv, border = case.get("conv", Convolution()), case.get("border", 0)
    shape = conv.out_shape(padded(x, border, True), weight)
    C = x.shape[1]
    affine = [torch.rand(C) + 0.5, torch.randn(C)] if case["normed"] else []
    g = images(*shape, dtype=dtype)
    return [x, weight.to(dtype).float(), torch.randn(shape[1]).to(dtype).float(), g, *affine]


@pytest.mark.parametrize("recompute", [True, False], ids=["computed again", "kept"])
@pytest.mark.parametrize("by", ["cpp", "torch"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_gradients_equal_float64(case: dict[str, Any], dtype: torch.dtype, by: By, recompute: bool) -> None:
    operands = _operands(case, dtype)
    ours = _gradients(case, operands, by=by, recompute=recompute)
    _check(case, operands, dtype, ours)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert ours[1].stride() == operands[1].stride()


@pytest.mark.parametrize("recompute", [True, False], ids=["computed again", "kept"])
@pytest.mark.parametrize("fast", [f for n in range(4) for f in itertools.combinations(OPERATORS, n)], ids=str)
@pytest.mark.parametrize("case", LAYERS[:1] + LAYERS[2:4], ids=str)
def test_the_table_can_choose_any_of_them(
    case: dict[str, Any], fast: tuple[str, ...], recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward of one kernel writes a border and that of another does not, for the gradients of either."""
    fast = tuple("once" if op == "conv" else op for op in fast)
    monkeypatch.setattr(choice, "is_faster", lambda op, *_: op in fast)
    operands = _operands(case, FP32)
    ours = _gradients(case, operands, by="auto", recompute=recompute)
    _check(case, operands, FP32, ours)


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("by", ["cpp", "torch"])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_gradients_are_added_to_those_so_far(
    case: dict[str, Any], by: By, dtype: torch.dtype, layout: str
) -> None:
    """A sum in fp32 has the bits of PyTorch's addition. One in bf16 is rounded once."""
    operands = _operands(case, dtype)
    before = images(*operands[1].shape, dtype=dtype, layout=layout)
    alone = _gradients(case, operands, by=by)
    into = before.clone()
    operands[1] = operands[1].to(dtype)
    sums = _gradients(case, operands, by=by, into=into)
    exact = before.double() + alone[1]
    assert_same_bits("sum", into, before + alone[1] if dtype == FP32 else exact.to(dtype))
    assert into.stride() == before.stride()
    assert not sums[1].numel()
    assert_same_bits("dx", sums[0], alone[0])


def test_a_padding_as_wide_as_the_kernel_is_left_to_pytorch() -> None:
    """The gradient of the image would be a convolution with a negative padding."""
    case = {"shape": (1, 8, 5, 6), "weight": (8, 8, 3, 3), "conv": Convolution(padding=3), "normed": False}
    operands = _operands(case, FP32)
    x, weight = operands[:2]
    assert convolution.chosen("dgrad", x, weight, case["conv"].aten, 0, "cpp") is None
    assert convolution.chosen("wgrad", x, weight, case["conv"].aten, 0, "cpp") == "winograd"
    _check(case, operands, FP32, _gradients(case, operands, by="cpp"))


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = _operands(LAYERS[2], FP32)
    for name in ("input_gradient", "weight_gradient", "sum_pixels"):
        monkeypatch.setattr(functions, name, lambda *_, **__: pytest.fail("computed"))
    results = _gradients(LAYERS[2], operands, by="cpp", needs=[False] * 3)
    assert not any(result.numel() for result in results)
