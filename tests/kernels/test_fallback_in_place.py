"""Gradients are still correct, and added only once, if a kernel fails while they are added in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import accumulating, reflect_conv2d
from fastcyclegan.kernels import residual_block as residual
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.kernels.zero_conv import zero_conv
from fastcyclegan.testing import relative_error
from tests.kernels import reflect_convs, zero_convs
from tests.kernels import test_norm_conv as norm_convs
from tests.kernels import test_residual_block as blocks
from tests.planted import plant

pytestmark = pytest.mark.usefixtures("auto_is_triton")


@dataclass(frozen=True)
class Added:
    """A layer with three weights (or pairs of weights), each with a separate ``.grad``.

    Because these are not adjacent in memory, adding to them takes several launches.
    """

    run: Callable[[Tensor, list[Tensor]], Tensor]
    shape: tuple[int, ...]
    weights: list[Tensor]


def added(name: str) -> Added:
    torch.manual_seed(0)
    if name == "residual_block":
        case = blocks.Case("", (2, 9, 2, 3), 2)
        x, one, two, _ = blocks.operands(case, "cpu")
        return Added(lambda x, ws: residual(x, ws[:2], ws[2:]), x.shape, [*one, *two])
    if name == "zero_conv":
        case = zero_convs.Case("", (3, 9, 4, 5), 10, P=3)
        x, weights, _, _ = zero_convs.operands(case, "cpu")
        return Added(lambda x, ws: zero_conv(x, ws, [], **case.options, required=False), x.shape, weights)
    x, weights, _, _ = reflect_convs.operands(reflect_convs.CASES[4], "cpu")
    return Added(lambda x, ws: reflect_conv2d(x, ws, padding=1), x.shape, weights)


def gradients(layer: Added, frozen: int | None = None, together: bool = False) -> list[Tensor]:
    """Run a backward pass that adds to gradients of ones, and return the weights' gradients.

    If ``together`` is true, the gradients are adjacent in memory.
    """
    torch.manual_seed(0)
    x = torch.randn(layer.shape).contiguous(memory_format=torch.channels_last)
    leaves = [w.detach().requires_grad_(i != frozen) for i, w in enumerate(layer.weights)]
    memory = torch.ones(len(leaves), *leaves[0].shape, dtype=leaves[0].dtype)
    for leaf, grad in zip(leaves, memory, strict=True):
        leaf.grad = grad if together else grad.clone()
    y = layer.run(x, leaves)
    with accumulating():
        y.backward(torch.randn(y.shape).to(y.dtype))
    return [leaf.grad for i, leaf in enumerate(leaves) if i != frozen and leaf.grad is not None]


OPERATORS = ["reflect_conv", "zero_conv", "residual_block"]
# Each entry makes one launch fail: the first sum, a sum after one that succeeded, the sum of the second of
# two runs of weights, or the product of the second run.
PLANTS = [("sum", 1, None), ("sum", 2, None), ("sum", 2, 1), ("wgrad", 2, 1)]


@pytest.mark.parametrize(
    ("name", "kernel", "first", "frozen"),
    [
        (name, *case)
        for name in OPERATORS
        for case in PLANTS
        if name != "residual_block" or case == ("sum", 2, 1)
    ],
)
def test_in_place_gradients_are_added_once(
    name: str, kernel: str, first: int, frozen: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a launch fails while gradients are added in place, each gradient is still added exactly once.

    A gradient that was not added, or was added twice, would be off by a half.
    """
    layer = added(name)
    expected = gradients(layer, frozen)
    full = {
        "sum": "_reflect_conv_wgrad_sum_kernel",
        "wgrad": f"_{'zero_conv' if name == 'zero_conv' else 'reflect_conv'}_wgrad_kernel",
    }
    failing = plant(monkeypatch, full[kernel], first=first)
    with pytest.warns(RuntimeWarning, match=f"^{name}: kernel {full[kernel]} does not compile"):
        results = gradients(layer, frozen)
    assert failing.launches == first
    for one, other in zip(results, expected, strict=True):
        assert relative_error(one, other) < 1e-6
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(gradients(layer, frozen), expected, strict=True))
    assert failing.launches == first


def test_in_place_gradient_of_norm_conv_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    layer = Added(
        lambda x, ws: norm_conv(x, ws[0], None, norm_convs.STRIDE_1, border=1, required=False),
        x.shape,
        [torch.randn(6, 8, 3, 3)],
    )
    expected = gradients(layer)
    plant(monkeypatch, "_instance_norm_bwd_apply_kernel")
    plant(monkeypatch, "_instance_norm_small_bwd_kernel")
    plant(monkeypatch, "_fold_border_kernel")
    with pytest.warns(RuntimeWarning, match="^norm_conv: kernel"):
        (result,) = gradients(layer)
    assert relative_error(result, expected[0]) < 1e-6


@pytest.mark.parametrize("name", OPERATORS)
def test_separate_sums_have_the_same_bits_as_one_launch(name: str) -> None:
    layer = added(name)
    for one, other in zip(gradients(layer, together=True), gradients(layer), strict=True):
        assert torch.equal(one, other)


def test_separate_sums_in_16_bits() -> None:
    """In 16 bits, adding to separate gradients gives the same bits as adding to adjacent ones.

    Sums stay in fp32 until they are stored. If they were rounded twice, one in ten would differ.
    """
    case = zero_convs.Case("", (3, 9, 4, 5), 10, P=3)
    weights = [w.half() for w in zero_convs.operands(case, "cpu")[1]]
    layer = Added(lambda x, ws: zero_conv(x.half(), ws, [], **case.options), case.shape, weights)
    for one, other in zip(gradients(layer, together=True), gradients(layer), strict=True):
        assert torch.equal(one, other)
