"""Tests of weight gradients that the C++ kernels add in place to an existing ``.grad``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import accumulating, residual_block
from fastcyclegan.kernels.cpu import convolution
from fastcyclegan.testing import assert_same_bits
from tests.kernels.cpu.processor import BF16, images
from tests.kernels.cpu.public_calls import CALLS, leaves_of, operands, results_of, upstream


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("name", CALLS)
def test_weight_gradients_are_added_in_place(
    name: str, autocast: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in operands(name)]
    leaves = leaves_of(tensors)
    once = results_of(name, "cpp", leaves, autocast)[1:]
    before = [torch.randn_like(leaf) for leaf in leaves]
    for leaf, start in zip(leaves, before, strict=True):
        leaf.grad = start.clone()
    stores = [leaf.grad.data_ptr() for leaf in leaves]
    added: list[int] = []
    gradients = convolution.gradients

    def recording(*a: Any, into: Tensor | None = None, **k: Any) -> Any:
        added.extend([] if into is None else [into.data_ptr()])
        return gradients(*a, into=into, **k)

    monkeypatch.setattr(convolution, "gradients", recording)
    with torch.autocast("cpu", BF16, enabled=autocast):
        y = CALLS[name].run(*leaves, impl="cpp")
    with accumulating():
        y.backward(upstream(y))
    assert [leaf.grad.data_ptr() for leaf in leaves] == stores
    for leaf, start, gradient in zip(leaves, before, once, strict=True):
        assert_same_bits("sum", leaf.grad, start + gradient)
    weights = [leaf.grad.data_ptr() for leaf in leaves[1:] if leaf.dim() == 4 and name != "instance_norm"]
    assert sorted(added) == sorted(weights)


def test_weights_that_are_used_twice_are_added_to_twice() -> None:
    x, weight = images(2, 8, 5, 5), torch.randn(8, 8, 3, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(residual_block(x, weight, weight, impl="cpp").sum(), weight)
    weight.grad = torch.zeros_like(weight)
    with accumulating():
        residual_block(x, weight, weight, impl="cpp").sum().backward()
    torch.testing.assert_close(weight.grad, expected)


def test_only_the_gradients_that_a_backward_fills_are_added_to() -> None:
    """``torch.autograd.grad`` and ``backward(inputs=)`` leave the ``.grad`` of other weights alone."""
    x, weight = images(2, 8, 5, 5).requires_grad_(), torch.randn(8, 8, 3, 3, requires_grad=True)
    start = torch.randn_like(weight)
    weight.grad = start.clone()
    with accumulating():
        y = residual_block(x, weight, weight, impl="cpp").sum()
        torch.autograd.grad(y, weight, retain_graph=True)
        y.backward(inputs=[x])
    assert_same_bits("untouched", weight.grad, start)


def test_hooks_of_a_weight_are_called() -> None:
    x, weight = images(2, 8, 5, 5), torch.randn(8, 8, 3, 3, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    seen: list[Tensor] = []
    weight.register_hook(seen.append)
    with accumulating():
        residual_block(x, weight, weight.detach(), impl="cpp").sum().backward()
    assert_same_bits("hook", weight.grad, seen[0])
