"""Tests of a U-Net's skips: the ReLU after the concatenation, bit for bit, and where it is not fused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.devtools.dry_run import counted
from fastcyclegan.kernels.cpu import small_maps
from fastcyclegan.nn.networks import UnetGenerator, set_impl
from fastcyclegan.nn.skips import relu_of_both
from fastcyclegan.testing import assert_parity, assert_same_bits, parameters_that_count

BF16 = torch.bfloat16
DTYPES = [torch.float32, BF16, torch.float16, torch.float64]


def _operands(dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """Return a skip and what joins it, with zeros of both signs, infinity and NaN."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, channels, 3, 5) for channels in (6, 10)]
    for t in tensors:
        t.view(-1)[:5] = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")])
    return [t.to(dtype).contiguous(memory_format=layout).requires_grad_() for t in tensors]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_and_gradients_have_the_bits_of_pytorchs(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    tensors = _operands(dtype, layout)
    ours, theirs = relu_of_both(*tensors), F.relu(torch.cat(tensors, dim=1))
    assert ours.isnan().sum() == 2
    # NaN is not equal to itself.
    assert_same_bits("result", *(y.nan_to_num(nan=-1) for y in (ours, theirs)))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    g = torch.randn_like(ours)
    found = torch.autograd.grad(ours, tensors, g)
    for gradient, expected in zip(found, torch.autograd.grad(theirs, tensors, g), strict=True):
        assert_same_bits("gradient", gradient, expected)
        # So that the norm below need not copy it.
        assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_one_half_can_be_frozen() -> None:
    skip, x = _operands(torch.float64, torch.channels_last)
    relu_of_both(skip.detach(), x).sum().backward()
    assert skip.grad is None
    assert x.grad is not None


def test_gradients_can_be_differentiated() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradgradcheck(relu_of_both, tensors)


def test_halves_that_cannot_share_a_pass_are_concatenated() -> None:
    skip, x = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    assert_same_bits("promoted", relu_of_both(skip, x), F.relu(torch.cat([skip, x], dim=1)))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        relu_of_both(skip, x[..., :2].float())
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        relu_of_both(skip, torch.cat([x, x]).float())


def test_compiled_and_traced_code_contains_no_function_of_ours() -> None:
    tensors = [torch.randn(1, 2, 3, 3), torch.randn(1, 4, 3, 3)]
    expected = relu_of_both(*tensors)
    compiled = torch.compile(relu_of_both, fullgraph=True, backend="eager")
    assert_same_bits("compiled", compiled(*tensors), expected)
    traced = torch.jit.trace(relu_of_both, tensors)
    assert "aten::cat" in str(traced.graph)
    assert_same_bits("traced", traced(*tensors), expected)


def _unet(norm: Any, impl: str, recompute: bool = True) -> nn.Module:
    torch.manual_seed(0)
    net = UnetGenerator(num_downs=5, ngf=4, norm=norm, impl=impl, recompute=recompute)
    return net.to(memory_format=torch.channels_last)


def _calls(net: nn.Module) -> dict[str, int]:
    x = torch.randn(1, 3, 32, 32)
    with counted(net.parameters()) as run:
        net(x).sum().backward()
    return dict(run.aten)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_unet_neither_concatenates_nor_activates_again(norm: str) -> None:
    """Of five levels, four have a skip. The ReLU at the bottom has none, and no norm before it."""
    calls = _calls(_unet(norm, "cpp"))
    assert "cat" not in calls
    assert calls["relu"] == 1
    # Batch norm is PyTorch's, and the LeakyReLU after it works in place.
    assert calls.get("leaky_relu_", 0) == (3 if norm == "batch" else 0)
    assert calls["leaky_relu"] == 1


@pytest.mark.parametrize("part", ["norm", "relu"])
def test_layers_with_hooks_are_not_changed_in_place(part: str) -> None:
    """What a hook receives, and may keep, is what the layer has returned."""
    net = _unet("batch", "cpp").eval()
    level: Any = net.model.model[1].model
    layer = level[2] if part == "norm" else level[4]
    kept: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda module, inputs, y: kept.append((y, y.clone())))
    x = torch.randn(1, 3, 32, 32)
    y = net(x)
    ((seen, at_once),) = kept
    assert_same_bits("what the hook has kept", seen, at_once)
    other = copy.deepcopy(net)
    set_impl(other, "reference")
    torch.testing.assert_close(y, other(x), atol=1e-4, rtol=1e-4)


def _results(net: nn.Module, x: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Return the output of ``net`` and the gradients of its parameters that count."""
    with torch.autocast("cpu", BF16, enabled=autocast):
        y = net(x)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape).to(y.dtype))
    names = parameters_that_count(net)
    return {"output": y.detach(), **{name: net.get_parameter(name).grad for name in names}}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_unets_and_their_gradients_equal_float64(
    norm: str, autocast: bool, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With convolutions of small maps as products, and norms over 16 pixels and more."""
    monkeypatch.setattr(small_maps, "_LARGE_WEIGHT", 0)
    net = _unet(norm, "cpp", recompute=recompute)
    pytorch = copy.deepcopy(net)
    set_impl(pytorch, "reference")
    exact = copy.deepcopy(pytorch).double()
    x = torch.randn(1, 3, 128, 128)
    found = [_results(n, x, autocast) for n in (net, pytorch)]
    found.append(_results(exact, x.double(), False))
    for name in found[1]:
        assert_parity(name, *(results[name] for results in found), BF16 if autocast else torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_unets_compile_in_one_graph(norm: str) -> None:
    net, x = _unet(norm, "cpp"), torch.randn(1, 3, 128, 128)
    eager = _results(net, x, False)
    net.zero_grad()
    net.compile(fullgraph=True, backend="aot_eager")
    for name, y in _results(net, x, False).items():
        torch.testing.assert_close(y, eager[name], atol=1e-4, rtol=1e-3)
