"""Tests of networks that the C++ kernels train: gradients by the parity rule, and weights that change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastcyclegan.kernels import accumulating
from fastcyclegan.kernels.cpu import functions
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator, set_impl
from fastcyclegan.testing import assert_parity, assert_same_bits, is_cancelled_bias

# Sizes are no multiple of a tile where the network allows that.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int]]] = {
    "generator": (lambda **k: Generator(ngf=5, n_blocks=2, **k), (20, 28)),
    "generator, affine": (lambda **k: Generator(1, 2, ngf=8, n_blocks=1, affine=True, **k), (16, 20)),
    "generator, resize convolutions": (
        lambda **k: Generator(ngf=6, n_blocks=1, upsample="resize", **k),
        (24, 20),
    ),
    "generator, batch norm": (lambda **k: Generator(ngf=4, n_blocks=1, norm="batch", **k), (20, 16)),
    "generator, no norm, zero padding": (
        lambda **k: Generator(ngf=4, n_blocks=1, norm="none", padding_type="zero", **k),
        (20, 16),
    ),
    "U-Net": (lambda **k: UnetGenerator(num_downs=5, ngf=3, **k), (64, 96)),
    "PatchGAN": (lambda **k: Discriminator(ndf=6, **k), (43, 37)),
    "1x1 PatchGAN": (lambda **k: PixelDiscriminator(ndf=6, **k), (9, 11)),
}
Results = dict[str, Tensor]
IMAGES = ("y", "dx")


def _built(kind: str, seed: int, **options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    build, size = NETWORKS[kind]
    net = build(**options)
    for name, p in net.named_parameters():
        if p.dim() == 1 and name.endswith("weight"):
            nn.init.uniform_(p, 0.5, 1.5)
        else:
            nn.init.normal_(p, 0, 0.1)
    channels = next(p for p in net.parameters() if p.dim() == 4).shape[1]
    return net, torch.rand(2, channels, *size) * 2 - 1


def _smallest(net: nn.Module, x: Tensor) -> float:
    """Return how near to 0 the input of an activation comes, relative to the largest of its layer."""
    found: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        z = inputs[0].abs()
        found.append(z.min() / z.max())

    exact = copy.deepcopy(net).double()
    set_impl(exact, "reference")
    for layer in exact.modules():
        if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
            layer.register_forward_pre_hook(record)
    with torch.no_grad():
        exact(x.double())
    return float(torch.stack(found).min())


def _smooth(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """Return a network and images whose activations stay on their side of 0 whatever rounds them in fp32.

    Where one changes sides, the gradient jumps. The parity rule, which is made for rounding, does not cover
    that.
    """
    for seed in itertools.count():
        net, x = _built(name, seed, **options)
        if _smallest(net, x) > 16 * torch.finfo(torch.float32).eps:
            return net, x
    raise AssertionError


def _upstream(y: Tensor) -> Tensor:
    """Return the gradient of ``y``: the same random numbers every time."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)


def _trained(net: nn.Module, x: Tensor, autocast: bool = False) -> Results:
    """Return the output and the gradients of the images and of all parameters."""
    leaf = x.detach().clone().requires_grad_()
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = net(leaf)
    y.backward(_upstream(y))
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    return {"y": y.detach(), "dx": leaf.grad, **gradients}


def _three(net: nn.Module, x: Tensor, impl: str, run: Callable[..., Results]) -> list[Results]:
    """Return the results with ``impl``, with the reference, and with the reference in float64."""
    nets = [copy.deepcopy(net) for _ in range(2)] + [copy.deepcopy(net).double()]
    for each, kind in zip(nets, (impl, "reference", "reference"), strict=True):
        set_impl(each, kind)
    return [run(nets[0], x), run(nets[1], x), run(nets[2], x.double())]


def _check(net: nn.Module, results: list[Results], dtype: torch.dtype) -> None:
    """Assert the parity rule for the output, its gradient for the images, and that for all parameters.

    In fp32, the kernel of each convolution is also compared alone. A bias is not: a few sums that happen to
    cancel have a large relative error. In bf16, activations change sides, and few numbers do not average that
    out.
    """
    together: list[list[Tensor]] = [[] for _ in results]
    for name, result in results[0].items():
        if is_cancelled_bias(net, name):
            assert result.shape == net.get_parameter(name).shape
            assert not result.any()
            continue
        if name in IMAGES or (dtype == torch.float32 and result.dim() == 4):
            assert_parity(name, *(each[name] for each in results), dtype)
        if name not in IMAGES:
            for gradients, each in zip(together, results, strict=True):
                gradients.append(each[name].flatten())
    assert_parity("all gradients", *(torch.cat(gradients) for gradients in together), dtype)


def _assert_same(ours: Results, expected: Results) -> None:
    assert ours.keys() == expected.keys()
    for name, result in ours.items():
        assert_same_bits(name, result, expected[name])


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("impl", ["cpp", "auto"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_float64(name: str, impl: str, layout: torch.memory_format) -> None:
    net, x = _smooth(name)
    net, x = net.to(memory_format=layout), x.contiguous(memory_format=layout)
    _check(net, _three(net, x, impl, _trained), torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("impl", ["cpp", "auto"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_under_autocast_are_as_accurate(name: str, impl: str, layout: torch.memory_format) -> None:
    net, x = _built(name, 0)
    net, x = net.to(memory_format=layout), x.contiguous(memory_format=layout)
    results = _three(net, x, impl, lambda net, x: _trained(net, x, autocast=x.dtype == torch.float32))
    _check(net, results, torch.bfloat16)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("name", NETWORKS)
def test_norms_that_are_kept_and_computed_again_give_the_same_bits(
    name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[str] = []
    call = functions.call
    monkeypatch.setattr(functions, "call", lambda f, *a: norms.append(f) or call(f, *a))
    results, counts = [], []
    for recompute in (True, False):
        norms.clear()
        net, x = _built(name, 0, impl="cpp", recompute=recompute)
        results.append(_trained(net, x, autocast))
        counts.append(norms.count("fcg_norm"))
    _assert_same(*results)
    if name == "generator":
        assert counts[0] > counts[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_added_in_place(name: str) -> None:
    net, x = _built(name, 0, impl="cpp")
    net.eval()
    once = _trained(net, x)
    places = {key: p.grad.data_ptr() for key, p in net.named_parameters()}
    y = net(x)
    with accumulating():
        y.backward(_upstream(y))
    for key, p in net.named_parameters():
        assert p.grad.data_ptr() == places[key]
        assert_same_bits(key, p.grad, 2 * once[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoints_have_the_same_bits(name: str) -> None:
    net, x = _built(name, 0, impl="cpp")
    net.eval()
    expected = _trained(net, x)
    forward = net.forward
    net.forward = lambda x: checkpoint(forward, x, use_reentrant=False)  # type: ignore[method-assign]
    _assert_same(_trained(net, x), expected)


def test_networks_compile_for_training() -> None:
    torch.compiler.reset()
    net, x = _built("generator", 0, impl="cpp", recompute=False)
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    y.backward(_upstream(y))
    gradients = {name: p.grad for name, p in net.named_parameters()}
    expected = _trained(net, x)
    _assert_same({"y": y.detach(), "dx": expected["dx"], **gradients}, expected)


def test_gradients_of_a_frozen_network() -> None:
    """Layers before the first trained one pass nothing on, and those of a frozen network still pass on dx."""
    net, x = _built("generator", 0, impl="cpp")
    expected = _trained(net, x)
    for name, trained in net.named_parameters():
        net.requires_grad_(False)
        trained.requires_grad_()
        net.zero_grad()
        y = net(x)
        y.backward(_upstream(y))
        assert [n for n, p in net.named_parameters() if p.grad is not None] == [name]
        assert_same_bits(name, trained.grad, expected[name])
    net.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    y = net(leaf)
    y.backward(_upstream(y))
    assert_same_bits("dx", leaf.grad, expected["dx"])


def _penalised(net: nn.Module, x: Tensor) -> Results:
    """Return the gradients of a gradient penalty, which differentiates the gradient of the images."""
    leaf = x.detach().clone().requires_grad_()
    (dx,) = torch.autograd.grad(net(leaf).sum(), leaf, create_graph=True)
    penalty = (dx.flatten(1).norm(dim=1) - 1).square().sum()
    trained = {name: p for name, p in net.named_parameters() if p.dim() == 4}
    gradients = torch.autograd.grad(penalty, list(trained.values()), allow_unused=True)
    return {"dx": dx.detach()} | {n: g for n, g in zip(trained, gradients, strict=True) if g is not None}


@pytest.mark.parametrize("name", ["PatchGAN", "1x1 PatchGAN", "generator"])
def test_gradient_penalties_equal_float64(name: str) -> None:
    net, x = _smooth(name)
    _check(net, _three(net, x, "cpp", _penalised), torch.float32)


# --- Weights that change ------------------------------------------------------------------------------------


def _step(net: nn.Module, fused: bool) -> None:
    """Change the weights by an optimizer. Fused Adam does not count its changes of a weight."""
    torch.optim.Adam(net.parameters(), lr=0.01, fused=fused).step()


def _in_place(change: Callable[[Tensor], Any]) -> Callable[[nn.Module], None]:
    def run(net: nn.Module) -> None:
        with torch.no_grad():
            for p in net.parameters():
                change(p)

    return run


def _load(net: nn.Module) -> None:
    net.load_state_dict({key: value * 0.9 for key, value in net.state_dict().items()})


def _replace(net: nn.Module) -> None:
    for p in net.parameters():
        p.data = torch.randn_like(p) / 9


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "mul_": _in_place(lambda p: p.mul_(1.1)),
    ".data": _in_place(lambda p: p.data.add_(0.01)),
    "numpy": _in_place(lambda p: p.numpy().__imul__(0.9)),
    "Adam": lambda net: _step(net, False),
    "fused Adam": lambda net: _step(net, True),
    "load_state_dict": _load,
    ".data = new": _replace,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_may_change_between_iterations(change: Callable[[nn.Module], None]) -> None:
    net, x = _built("generator", 0, impl="cpp")
    before = _trained(net, x)
    change(net)
    after = _trained(net, x)
    assert not torch.equal(after["y"], before["y"])
    _assert_same(after, _trained(copy.deepcopy(net), x))
