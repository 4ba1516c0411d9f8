"""Tests of networks that the C++ kernels compute: parity, and the layers that they leave alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcyclegan
from fastcyclegan import reference
from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.kernels.cpu import choice, functions
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator, set_impl
from fastcyclegan.testing import assert_parity, assert_same_bits

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "generator": lambda: Generator(ngf=12, n_blocks=2),
    "generator, affine, resize convolutions": lambda: Generator(
        1, 2, ngf=8, n_blocks=1, affine=True, upsample="resize"
    ),
    "generator, batch norm, zero padding": lambda: Generator(
        ngf=8, n_blocks=1, norm="batch", padding_type="zero"
    ),
    "generator with dropout": lambda: Generator(ngf=8, n_blocks=2, use_dropout=True),
    "U-Net": lambda: UnetGenerator(num_downs=5, ngf=8),
    "PatchGAN": lambda: Discriminator(ndf=8),
    "1x1 PatchGAN": lambda: PixelDiscriminator(ndf=8),
}


def _built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    channels = next(p for p in net.parameters() if p.dim() == 4).shape[1]
    return net, torch.rand(2, channels, 32, 44) * 2 - 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the names of the C++ functions that are called."""
    names: list[str] = []
    call = functions.call
    monkeypatch.setattr(functions, "call", lambda name, *a: names.append(name) or call(name, *a))
    return names


@pytest.mark.parametrize("impl", ["cpp", "auto"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "U-Net"])
def test_networks_equal_float64(name: str, autocast: bool, impl: str, calls: list[str]) -> None:
    net, x = _built(name)
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        for kind in (impl, "reference"):
            set_impl(net, kind)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                results[kind] = net(x)
        assert calls, "no C++ kernel was called"
        exact = copy.deepcopy(net).double()(x.double())
    assert results[impl].dtype == results["reference"].dtype
    dtype = torch.bfloat16 if autocast else torch.float32
    assert_parity(name, results[impl], results["reference"], exact, dtype)


@pytest.mark.parametrize("impl", ["cpp", "auto"])
def test_unet_equals_float64(impl: str, calls: list[str]) -> None:
    """The levels of a U-Net are chains within chains; its innermost norms see 1 x 2 pixels."""
    net = UnetGenerator(num_downs=5, ngf=8).eval()
    x = torch.rand(1, 3, 32, 64) * 2 - 1
    with torch.no_grad():
        set_impl(net, impl)
        ours = net(x)
        set_impl(net, "reference")
        pytorch, exact = net(x), copy.deepcopy(net).double()(x.double())
    assert calls
    assert_parity("U-Net", ours, pytorch, exact, torch.float32)


def test_16_bit_networks_compute_their_tanh_in_fp32() -> None:
    net, x = _built("generator")
    net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    with torch.no_grad():
        results = {}
        for impl in ("cpp", "reference"):
            set_impl(net, impl)
            results[impl] = net(x)
        exact = copy.deepcopy(net).double()(x.double())
    assert results["cpp"].dtype == torch.bfloat16
    assert_parity("tanh", results["cpp"], results["reference"], exact, torch.bfloat16)


def test_unbatched_and_empty_images() -> None:
    net, x = _built("generator")
    set_impl(net, "cpp")
    with torch.no_grad():
        assert_same_bits("one image", net(x[0]), net(x[:1])[0])
        assert net(x[:0]).shape == (0, 3, 32, 44)


@pytest.mark.parametrize("name", NETWORKS)
def test_results_have_the_layout_of_pytorchs(name: str) -> None:
    """Code that views a result as a vector must work with and without gradients."""
    net, x = _built(name)
    if name == "U-Net":
        x = x[:, :, :32, :32]
    set_impl(net, "cpp")
    layouts = [torch.contiguous_format, torch.channels_last]
    for layout in layouts[: 1 if x.shape[1] == 1 else 2]:  # with one channel, both are the same
        images = x.contiguous(memory_format=layout)
        with torch.no_grad():
            y = net(images)
        assert y.is_contiguous(memory_format=layout)
        if layout == torch.contiguous_format:
            y.view(-1)
    set_impl(net.to(memory_format=torch.channels_last), "auto")
    with torch.no_grad():
        y = net(x.contiguous())
    # With one channel, both layouts are the same.
    assert y.is_contiguous(memory_format=torch.channels_last if x.shape[1] > 1 else torch.contiguous_format)


def test_layers_with_hooks_and_layers_of_the_users_are_called() -> None:
    """The kernels compute only layers that are known; all others run as modules, in their order."""
    net, x = _built("generator")
    set_impl(net, "cpp")
    seen: list[Tensor] = []
    net.model[5].register_forward_hook(lambda module, inputs, y: seen.append(y))

    class Doubled(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net.model[6] = Doubled()
    with torch.no_grad():
        ours = net(x)
        set_impl(net, "reference")
        pytorch, exact = net(x), copy.deepcopy(net).double()(x.double())
    assert_parity("hooks", ours, pytorch, exact, torch.float32)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


def test_weights_may_change_between_calls() -> None:
    net, x = _built("generator")
    set_impl(net, "cpp")
    with torch.no_grad():
        first = net(x)
        for change in (lambda p: p.mul_(1.1), lambda p: p.data.add_(0.01), lambda p: p.numpy().__imul__(0.9)):
            for p in net.parameters():
                change(p)
            fresh = copy.deepcopy(net)
            assert_same_bits("changed", net(x), fresh(x))
        assert not torch.equal(net(x), first)


def test_traces_and_exports_are_pytorchs() -> None:
    """A file that is exported on a CPU must not need this package."""
    net, x = _built("generator")
    with torch.no_grad():
        traced = torch.jit.trace(net, x)
        exported = torch.export.export(net, (x,))
    assert "fastcyclegan::" not in str(traced.inlined_graph)
    assert "fastcyclegan." not in str(exported.graph)


def test_networks_compile() -> None:
    torch.compiler.reset()
    net, x = _built("generator")
    set_impl(net, "cpp")
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same_bits("compiled", compiled(x), net(x))


def test_the_table_of_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(choice, "is_faster", lambda *shape: asked.append(shape) or False)
    net, x = _built("generator")
    residual, image = (torch.float32, 3, 1, 48, 48, 8 * 11), (torch.float32, 7, 1, 3, 12, 32 * 44)
    net(x.requires_grad_()).sum().backward()
    assert set(asked) >= {(op, *layer) for op in ("once", "dgrad", "wgrad") for layer in (residual, image)}
    asked.clear()
    with torch.no_grad():
        net.fast()(x.detach())
    assert set(asked) >= {("conv", *layer) for layer in (residual, image)}


def test_accelerated_networks(calls: list[str]) -> None:
    """Networks of other projects get the same kernels by accelerate."""
    torch.manual_seed(0)
    net = reference.Generator(ngf=12, n_blocks=2).eval()
    x = torch.rand(1, 3, 32, 44) * 2 - 1
    with torch.no_grad():
        pytorch, exact = net(x), copy.deepcopy(net).double()(x.double())
        accelerate(net, impl="cpp")
        ours = net(x)
    assert {"fcg_norm_lines", "fcg_winograd"} & set(calls)
    assert_parity("accelerated", ours, pytorch, exact, torch.float32)
    calls.clear()
    net(x).sum().backward()
    assert {"fcg_winograd_gradient", "fcg_norm_backward_lines"} & set(calls)
    assert next(net.parameters()).grad is not None


def test_repr_names_the_implementation() -> None:
    net = fastcyclegan.Generator(ngf=8, n_blocks=1)
    assert "impl=auto (cpp)" in repr(net)
    assert "impl=auto (reference)" in repr(net.double())
