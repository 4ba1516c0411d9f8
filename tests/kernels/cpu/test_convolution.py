"""Tests of which kernel computes a convolution, and that all of them compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm_ref
from fastcyclegan.kernels._convolution import AtenConvolution, Convolution
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import choice, convolution, functions
from fastcyclegan.kernels.cpu.convolution import By, norm_convolve
from fastcyclegan.kernels.cpu.forms import WeightForms
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.cases import LAYERS
from tests.kernels.cpu.processor import BF16, FP32, images, padded

SAME = Convolution().aten
OPERATORS: tuple[convolution.Op, ...] = ("conv", "dgrad", "wgrad")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("conv", "shape", "border", "expected"),
    [
        (SAME, (64, 64, 3, 3), 1, "winograd"),
        (Convolution(padding=1).aten, (64, 64, 3, 3), 0, "winograd"),
        (SAME, (64, 3, 7, 7), 3, "wide"),
        (Convolution(2, 1).aten, (64, 3, 4, 4), 0, "wide"),
        (SAME, (3, 64, 7, 7), 3, "few"),
        (SAME, (1, 64, 1, 1), 0, "few"),
        (Convolution(2, 1).aten, (128, 64, 3, 3), 0, None),
        (SAME, (64, 64, 5, 5), 2, None),
        (Convolution(2, 1, True, 1).aten, (64, 3, 3, 3), 0, None),
        (AtenConvolution([1, 1], [0, 0], [2, 2], False, [0, 0], 1), (64, 64, 3, 3), 0, None),
        (AtenConvolution([1, 1], [0, 0], [1, 1], False, [0, 0], 2), (64, 2, 3, 3), 0, None),
        (AtenConvolution([1, 1], [1, 0], [1, 1], False, [0, 0], 1), (64, 64, 3, 3), 0, None),
        (AtenConvolution([1, 2], [0, 0], [1, 1], False, [0, 0], 1), (64, 3, 3, 3), 0, None),
        (SAME, (64, 64, 3, 1), 0, None),
        # Reflected by the operator and padded with zeros by the convolution.
        (Convolution(padding=1).aten, (64, 64, 3, 3), 1, None),
    ],
)
def test_kind(conv: AtenConvolution, shape: tuple[int, ...], border: int, expected: str | None) -> None:
    weight = torch.empty(shape)
    assert convolution.kind_of(conv, weight, border) == expected


def test_the_table_decides_unless_the_kernels_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = images(1, 8, 6, 6), torch.randn(8, 8, 3, 3)
    operands = (x, weight, SAME, 1)
    for op in OPERATORS:
        for is_faster in (True, False):
            monkeypatch.setattr(choice, "is_faster", lambda *_, answer=is_faster: answer)
            assert convolution.chosen(op, *operands, "auto") == ("winograd" if is_faster else None)
            assert convolution.chosen(op, *operands, "cpp") == "winograd"
            assert convolution.chosen(op, *operands, "torch") is None


def test_a_weight_that_is_transformed_on_every_call_has_times_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(choice, "is_faster", lambda op, *_: asked.append(op) or True)
    operands = (images(1, 8, 6, 6), torch.randn(8, 8, 3, 3), SAME, 1)
    for op in OPERATORS:
        convolution.chosen(op, *operands)
    with WeightForms():
        convolution.chosen("conv", *operands)
    assert asked == ["once", "dgrad", "wgrad", "conv"]


@pytest.mark.parametrize("by", ["cpp", "torch"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_norm_and_convolution_equal_float64(case: dict[str, Any], dtype: torch.dtype, by: By) -> None:
    x, weight = images(*case["shape"], dtype=dtype), torch.randn(case["weight"]) / 5
    conv = case.get("conv", Convolution())
    bias = torch.randn(conv.out_shape(x, weight)[1])
    border = case.get("border", 0)
    norm = (
        Norm(torch.rand(x.shape[1]) + 0.5, torch.randn(x.shape[1]), 1e-5, "relu") if case["normed"] else None
    )
    ours = norm_convolve(x, norm, border, weight, bias, conv.aten, by=by).out

    def compute(x: Tensor, kind: torch.dtype) -> Tensor:
        if norm is not None:
            x = instance_norm_ref(x, norm.weight, norm.bias, act="relu").to(kind)
        rounded, offset = weight.to(dtype).to(kind), bias.to(dtype).to(kind)
        return torch.ops.aten.convolution(padded(x, border, True), rounded, offset, *conv.aten.flat())

    assert_parity("convolution", ours, compute(x, dtype), compute(x.double(), torch.float64), dtype)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    wide = norm_convolve(x, norm, border, weight, bias, conv.aten, by=by, float_out=True).out
    assert wide.dtype == FP32
    assert_same_bits("rounded", wide.to(dtype), ours)


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("by", ["cpp", "torch"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_kept_forms_give_the_same_bits(
    case: dict[str, Any], by: By, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in oneDNN's own layout, which is used for large weights, and after the weight has changed."""
    monkeypatch.setattr(convolution, "_WORTH_PACKING", 1)
    x, weight = images(*case["shape"], dtype=dtype), torch.randn(case["weight"])
    conv = case.get("conv", Convolution()).aten
    forms = WeightForms()
    arguments = (x, None, case.get("border", 0), weight, None, conv)
    for _ in range(2):
        expected = norm_convolve(*arguments, by=by).out
        for _ in range(2):
            with forms:
                assert_same_bits("kept", norm_convolve(*arguments, by=by).out, expected)
        weight.data.mul_(1.5)


def test_a_kept_form_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    prepared = functions._prepared
    monkeypatch.setattr(functions, "_prepared", lambda *a, **k: made.append(1) or prepared(*a, **k))
    x, weight = images(1, 8, 6, 6), torch.randn(8, 8, 3, 3)
    with WeightForms() as forms:
        for _ in range(3):
            norm_convolve(x, None, 1, weight, None, SAME, by="cpp")
    with forms:
        norm_convolve(x, None, 1, weight, None, SAME, by="cpp")
    assert len(made) == 1


def test_images_of_one_kernel_are_not_padded_by_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's kernel reads the reflected border where it is, so no pass writes one."""
    borders = []
    norm = functions.norm
    monkeypatch.setattr(
        functions,
        "norm",
        lambda x, n, residual=None, border=0: borders.append(border) or norm(x, n, residual, border),
    )
    monkeypatch.setattr(functions, "pad", lambda *_, **__: pytest.fail("padded"))
    x = images(1, 16, 6, 6)
    norm_convolve(x, Norm(), 1, torch.randn(16, 16, 3, 3), None, SAME, by="cpp")
    norm_convolve(x, Norm(), 2, torch.randn(16, 16, 5, 5), None, SAME, by="cpp")
    assert borders == [0, 2]
