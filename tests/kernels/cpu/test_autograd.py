"""Tests of the gradients that the public functions have on a processor, of any order and in every mode."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastcyclegan.kernels import instance_norm, reflect_conv2d, residual_block
from fastcyclegan.kernels.cpu import functions
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.processor import BF16, FP32, images, on_every_number_of_threads
from tests.kernels.cpu.public_calls import CALLS, leaves_of, operands, results_of, upstream


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the names of the C++ functions that are called."""
    names: list[str] = []
    call = functions.call
    monkeypatch.setattr(functions, "call", lambda name, *a: names.append(name) or call(name, *a))
    return names


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("impl", ["cpp", "auto"])
@pytest.mark.parametrize("name", CALLS)
def test_gradients_equal_float64(name: str, impl: str, autocast: bool, called: list[str]) -> None:
    tensors = operands(name)
    ours = results_of(name, impl, leaves_of(tensors), autocast)
    if impl == "cpp" and "5x5" not in name:
        assert any("backward" in f or "gradient" in f for f in called), "no kernel computed a gradient"
    dtype = ours[0].dtype
    pytorch = results_of(name, "reference", leaves_of(tensors), autocast)
    truth = results_of(name, "reference", leaves_of([t.to(dtype) for t in tensors], torch.float64))
    for index, results in enumerate(zip(ours, pytorch, truth, strict=True)):
        assert_parity(f"{name}, {index}", *results, dtype)
        assert results[0].dtype == results[1].dtype


@pytest.mark.parametrize("name", CALLS)
def test_bf16_gradients_equal_float64(name: str) -> None:
    """The operands themselves are bf16, and so are their gradients."""
    tensors = [t.to(BF16) for t in operands(name)]
    ours, pytorch = (results_of(name, impl, leaves_of(tensors, BF16)) for impl in ("cpp", "reference"))
    truth = results_of(name, "reference", leaves_of(tensors, torch.float64))
    for index, results in enumerate(zip(ours, pytorch, truth, strict=True)):
        assert results[0].dtype == BF16
        assert_parity(f"{name}, {index}", *results, BF16)


# The sums of oneDNN, which computes those of the 5x5 weight, depend on the threads.
@pytest.mark.parametrize("name", [name for name in CALLS if "5x5" not in name])
def test_gradients_have_the_same_bits_for_any_number_of_threads(name: str) -> None:
    leaves = leaves_of(operands(name))
    on_every_number_of_threads(lambda: tuple(results_of(name, "cpp", leaves)))


@pytest.mark.parametrize("name", CALLS)
def test_operands_that_need_no_gradient_get_none(name: str) -> None:
    """A frozen network still passes on the gradient of its images, and the first layer passes on none."""
    tensors = operands(name)
    expected = results_of(name, "cpp", leaves_of(tensors))[1:]
    for chosen in range(len(tensors)):
        leaves = [t.clone().requires_grad_(i == chosen) for i, t in enumerate(tensors)]
        y = CALLS[name].run(*leaves, impl="cpp")
        y.backward(upstream(y))
        for i, leaf in enumerate(leaves):
            if i == chosen:
                assert_same_bits(f"gradient {i}", leaf.grad, expected[i])
            else:
                assert leaf.grad is None


@pytest.mark.parametrize("name", CALLS)
def test_the_gradient_may_have_any_layout(name: str) -> None:
    leaves = leaves_of(operands(name))
    y = CALLS[name].run(*leaves, impl="cpp")
    g = upstream(y)
    gaps = torch.stack([g, g], -1)[..., 0]
    expected = torch.autograd.grad(y, leaves, g, retain_graph=True)
    for other in (g.contiguous(memory_format=torch.channels_last), gaps):
        found = torch.autograd.grad(y, leaves, other, retain_graph=True)
        for ours, same in zip(found, expected, strict=True):
            assert_same_bits("gradient", ours, same)
    expected = torch.autograd.grad(y, leaves, torch.ones_like(y), retain_graph=True)
    # The gradient of a sum is one number, expanded.
    for ours, same in zip(torch.autograd.grad(y.sum(), leaves), expected, strict=True):
        assert_same_bits("gradient of a sum", ours, same)


@pytest.mark.parametrize("name", CALLS)
def test_a_second_backward_adds_the_same(name: str) -> None:
    leaves = leaves_of(operands(name))
    once = results_of(name, "cpp", leaves)[1:]
    y = CALLS[name].run(*leaves, impl="cpp")
    y.backward(upstream(y), retain_graph=True)
    y.backward(upstream(y))
    for leaf, gradient in zip(leaves, once, strict=True):
        assert_same_bits("twice", leaf.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward(upstream(y))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_checkpoints_have_the_same_bits(name: str, reentrant: bool) -> None:
    leaves = leaves_of(operands(name))
    expected = results_of(name, "cpp", leaves)
    run = functools.partial(CALLS[name].run, impl="cpp")
    y = checkpoint(run, *leaves, use_reentrant=reentrant)
    y.backward(upstream(y))
    for ours, theirs in zip([y, *(leaf.grad for leaf in leaves)], expected, strict=True):
        assert_same_bits("checkpoint", ours, theirs)


def test_functions_compile_in_one_graph() -> None:
    """Forward and backward, for every number of pixels."""
    torch.compiler.reset()

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        return residual_block(instance_norm(x, act="relu", impl="cpp"), *weights, impl="cpp")

    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for size in (6, 9):
        tensors = (images(1, 8, size, size), torch.randn(8, 8, 3, 3), torch.randn(8, 8, 3, 3))
        results = []
        for function in (compiled, run):
            leaves = leaves_of(tensors)
            y = function(*leaves)
            results.append([y, *torch.autograd.grad(y, leaves, upstream(y))])
        for ours, expected in zip(*results, strict=True):
            assert_same_bits("compiled", ours, expected)


def test_jacobians_can_be_vectorised() -> None:
    """The gradient of an output is then one for every entry of the Jacobian."""
    x, weight, scale = images(1, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.randn(5)

    def run(x: Tensor) -> Tensor:
        y = reflect_conv2d(x, weight, padding=1, impl="cpp")
        return instance_norm(y, scale, act="relu", impl="cpp")

    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(run, x, vectorize=True), jacobian(run, x))


# --- Gradients of gradients ---------------------------------------------------------------------------------


def _second_order(name: str, impl: str, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return all gradients of the squared norm of the image's gradient, as in a gradient penalty."""
    y = CALLS[name].run(*leaves, impl=impl)
    g = upstream(y).requires_grad_()
    (dx,) = torch.autograd.grad(y, leaves[:1], g, create_graph=True)
    found = torch.autograd.grad(dx.square().sum() + y.square().sum(), [*leaves, g], allow_unused=True)
    return [dx, *(torch.zeros(()) if t is None else t for t in found)]


@pytest.mark.parametrize("name", CALLS)
def test_second_gradients_equal_float64(name: str) -> None:
    tensors = operands(name)
    ours, pytorch = (_second_order(name, impl, leaves_of(tensors)) for impl in ("cpp", "reference"))
    truth = _second_order(name, "reference", leaves_of(tensors, torch.float64))
    for index, results in enumerate(zip(ours, pytorch, truth, strict=True)):
        assert_parity(f"{name}, {index}", *results, FP32)


@pytest.mark.parametrize("name", CALLS)
def test_differentiable_gradients_equal_the_others(name: str) -> None:
    """``create_graph`` decides only what computes a gradient."""
    leaves = leaves_of(operands(name))
    plain = results_of(name, "cpp", leaves)
    y = CALLS[name].run(*leaves, impl="cpp")
    found = torch.autograd.grad(y, leaves, upstream(y), create_graph=True)
    truth = results_of(name, "reference", leaves_of(leaves, torch.float64))
    for one, other, exact in zip(plain[1:], found, truth[1:], strict=True):
        assert_parity("gradient", other, one, exact, FP32)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gradients_of_a_weight_that_is_used_twice(order: int) -> None:
    """An operator's image then depends on its weight, and its gradients must not count that dependence."""
    x, weight = images(1, 8, 5, 5), torch.randn(8, 8, 3, 3) / 8
    results = []
    for impl, dtype in (("cpp", FP32), ("reference", FP32), ("reference", torch.float64)):
        (leaf,) = leaves_of([weight], dtype)
        value = residual_block(x.to(dtype), leaf, leaf, impl=impl)
        for _ in range(order):
            (value,) = torch.autograd.grad(value.square().mean(), leaf, create_graph=True)
        results.append(value)
    assert_parity("gradient", *results, FP32)


@pytest.mark.parametrize("name", CALLS)
def test_differentiable_gradients_of_single_operands(name: str) -> None:
    tensors = operands(name)
    truth = results_of(name, "reference", leaves_of(tensors, torch.float64))[1:]
    pytorch = results_of(name, "reference", leaves_of(tensors))[1:]
    for chosen, results in enumerate(zip(pytorch, truth, strict=True)):
        leaves = [t.clone().requires_grad_(i == chosen) for i, t in enumerate(tensors)]
        y = CALLS[name].run(*leaves, impl="cpp")
        (ours,) = torch.autograd.grad(y, leaves[chosen], upstream(y), create_graph=True)
        assert_parity(f"operand {chosen}", ours, *results, FP32)
