"""Tests of reflect_conv2d as a PyTorch operator: opcheck, torch.compile, autocast, and saved tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import reflect_conv2d, reflect_conv2d_ref
from tests.kernels.reflect_convs import (
    BF16,
    CASES,
    FP32,
    SMALL,
    SMALL_IMAGES,
    Case,
    operands,
    ours,
    results,
)

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("case", [SMALL, *SMALL_IMAGES], ids=lambda c: c.why)
def test_opcheck(case: Case, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    arguments = (
        x.requires_grad_(),
        None,
        None,
        *leaves,
        False,
        1e-5,
        "none",
        0.2,
        case.padding,
        False,
        True,
        True,
    )
    torch.library.opcheck(torch.ops.fastcyclegan.reflect_conv_fwd, arguments)
    empty = x.detach().new_empty(0)
    saved = (dy, x.detach(), None, None, empty, empty, [w.detach() for w in weights], empty, empty)
    needs = [True, bool(biases), *(i != 0 for i in range(case.P))]
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_bwd, (*saved, "none", 0.2, case.padding, needs, True)
    )


@pytest.mark.parametrize("recompute", [True, False])
def test_opcheck_with_norm_and_tanh(recompute: bool, device: str) -> None:
    x, weights, biases, dy = operands(Case("", (1, 12, 3, 4), 3, bias=True), device)
    norm = [torch.randn(12, device=device, requires_grad=True) for _ in range(2)]
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    options = (True, 1e-5, "relu", 0.2, 1, True, recompute, True)
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_fwd, (x.requires_grad_(), *norm, *leaves, *options)
    )
    with torch.no_grad():
        out, mean, rstd, y = torch.ops.fastcyclegan.reflect_conv_fwd(x, *norm, *leaves, *options)
    inputs = (dy, x.detach(), *(t.detach() for t in norm), mean, rstd, [weights[0].detach()], out, y)
    torch.library.opcheck(
        torch.ops.fastcyclegan.reflect_conv_bwd, (*inputs, "relu", 0.2, 1, [True] * 3, True)
    )


def test_compiles_to_one_graph_and_keeps_strides(device: str) -> None:
    case = SMALL
    tensors = operands(case, device)
    eager = results(ours(case), *tensors)
    compiled = results(
        torch.compile(lambda x, w, b: ours(case)(x * 1, w, b).mul(1), fullgraph=True), *tensors
    )
    for name, result in eager.items():
        torch.testing.assert_close(compiled[name], result)
        assert compiled[name].stride() == result.stride()


def test_autocast_casts_as_convolutions_do(device: str) -> None:
    x, weights, biases, dy = operands(SMALL, device)
    leaves = [w.requires_grad_() for w in weights]
    for impl in ("triton", "reference"):
        with torch.autocast(device, BF16):
            y = reflect_conv2d(x, leaves, biases, padding=1, impl=impl)
        assert y.dtype == BF16
        y.backward(dy.to(BF16))
        assert leaves[0].grad.dtype == FP32
    with torch.autocast(device, BF16):
        assert (
            reflect_conv2d(x.half(), [w.half() for w in leaves], biases, padding=1, impl="reference").dtype
            == BF16
        )


def test_functional_call_and_no_grad(device: str) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(9, 12, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return reflect_conv2d(x, self.weight, padding=1, impl="triton")

    x, weights, _, _ = operands(Case("", (1, 12, 4, 4), 9), device)
    y = torch.func.functional_call(Layer().to(device), {"weight": weights[0]}, (x,))
    torch.testing.assert_close(y, reflect_conv2d_ref(x, weights, padding=1))
    with torch.no_grad():
        assert not Layer().to(device)(x).requires_grad


def test_saves_only_its_input_and_weights(device: str) -> None:
    x, weights, _, _ = operands(SMALL, device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reflect_conv2d(x, [w.requires_grad_() for w in weights], padding=1, impl="triton")
    assert sorted(t.numel() for t in saved if t.numel()) == sorted([x.numel(), *(w.numel() for w in weights)])


def test_double_backward_raises(device: str) -> None:
    x, weights, _, _ = operands(CASES[0], device)
    (grad,) = torch.autograd.grad(
        reflect_conv2d(x.requires_grad_(), weights, padding=1, impl="triton").square().sum(),
        x,
        create_graph=True,
    )
    with pytest.raises(
        RuntimeError,
        match=r"reflect_conv2d: the Triton kernels do not support double backward .* use impl='reference'",
    ):
        grad.sum().backward()
