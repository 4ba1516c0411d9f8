"""Tests of instance_norm as a PyTorch operator: opcheck, torch.compile, autocast, and saved tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm, instance_norm_ref
from tests.kernels.norms import in_layout

FP32, BF16 = torch.float32, torch.bfloat16


def _operands(device: str, planes: bool = False) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, residual = (in_layout(torch.randn(2, 5, 9, 11, device=device), planes) for _ in range(2))
    return x, torch.randn(5, device=device), torch.randn(5, device=device), residual


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_opcheck(planes: bool, plain: bool, device: str) -> None:
    x, weight, bias, residual = _operands(device, planes)
    optional = (
        (None, None, None)
        if plain
        else (weight.requires_grad_(), bias.requires_grad_(), residual.requires_grad_())
    )
    torch.library.opcheck(
        torch.ops.fastcyclegan.instance_norm_fwd,
        (x.requires_grad_(), *optional, 1e-5, "leaky_relu", 0.2, True),
    )
    mean, rstd = torch.randn(2, 5, device=device), torch.rand(2, 5, device=device)
    affine = (None, None) if plain else (weight.detach(), bias.detach())
    arguments = (residual.detach(), x.detach(), *affine, mean, rstd, "leaky_relu", 0.2, True)
    torch.library.opcheck(torch.ops.fastcyclegan.instance_norm_bwd, arguments)


def test_compiles_to_one_graph_and_keeps_strides(device: str) -> None:
    """Compiled forward and backward passes have one graph each, and results with the same strides as eager.

    The compiler can choose any layout for the operators before and after the norm.
    """
    x, weight, bias, residual = _operands(device)

    def run(x: Tensor) -> Tensor:
        return instance_norm(x * 2, weight, bias, act="relu", residual=residual, impl="triton").mul(3)

    results = []
    for f in (run, torch.compile(run, fullgraph=True)):
        leaf = x.detach().requires_grad_()
        y = f(leaf)
        y.backward(residual)
        results.append((y.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)
        assert eager.stride() == compiled.stride()


def test_one_graph_serves_all_sizes(device: str) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    f = torch.compile(
        lambda x: instance_norm(x, act="relu", impl="triton"), fullgraph=True, dynamic=True, backend=count
    )
    for height, width in ((9, 11), (8, 30), (21, 5)):
        x = in_layout(torch.randn(2, 5, height, width, device=device), False)
        torch.testing.assert_close(f(x), instance_norm_ref(x, act="relu"))
    assert len(graphs) == 1


def test_fake_tensors(device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, weight, _, _ = _operands(device)
    with FakeTensorMode() as mode:
        y = instance_norm(mode.from_tensor(x), mode.from_tensor(weight), impl="triton")
    assert y.shape == x.shape
    assert y.stride() == x.stride()


def test_autocast_leaves_the_dtype_of_the_input(device: str) -> None:
    """Under autocast, the result has the dtype of the input, as in torch's instance norm.

    A convolution's bf16 output stays bf16 even with fp32 parameters, and fp32 stays fp32.
    """
    x, weight, bias, _ = _operands(device)
    with torch.autocast(device, BF16):
        assert instance_norm(x, weight, bias, impl="triton").dtype == FP32
        y = instance_norm(x.to(BF16), weight.requires_grad_(), bias, impl="triton")
    assert y.dtype == BF16
    y.sum().backward()
    assert weight.grad.dtype == FP32


def test_saves_its_input_and_two_vectors(device: str) -> None:
    saved: list[Tensor] = []
    x = torch.randn(2, 5, 9, 11, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        instance_norm(x, act="relu", residual=x, impl="triton")
    assert sorted(t.numel() for t in saved) == [10, 10, 990]


def test_only_inputs_that_require_a_gradient_get_one(device: str) -> None:
    x, weight = torch.randn(2, 5, 4, 4, device=device), torch.randn(5, device=device, requires_grad=True)
    residual = torch.randn(2, 5, 4, 4, device=device, requires_grad=True)
    y = instance_norm(x, weight, residual=residual, impl="triton")
    y.sum().backward()
    assert x.grad is None
    assert torch.equal(residual.grad, torch.ones_like(residual))
    with torch.no_grad():
        assert not instance_norm(x, weight, impl="triton").requires_grad


def test_double_backward_raises_and_names_the_reference(device: str) -> None:
    x = torch.randn(2, 5, 4, 4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(instance_norm(x, impl="triton").square().sum(), x, create_graph=True)
    with pytest.raises(
        RuntimeError,
        match=r"instance_norm: the Triton kernels do not support double backward .* use impl='reference'",
    ):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(instance_norm(x, impl="reference").square().sum(), x, create_graph=True)
    grad.square().sum().backward()
