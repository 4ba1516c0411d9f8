"""Tests of chains, and of how they fall back to single layers that are hooked, replaced or frozen."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import InstanceNormAct
from fastcyclegan.nn.chains import Chain
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.testing import parameters_that_count
from tests.nn.triples import DEVICE, check_parity, network_triple, outputs

pytestmark = pytest.mark.usefixtures("no_tf32")


def test_copies_pickles_and_functional_calls() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8, device=DEVICE)
    for net in (
        InstanceNormAct(3, affine=True, act="relu", impl="triton").to(DEVICE),
        Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE),
    ):
        y = net(x)
        assert torch.equal(copy.deepcopy(net)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), y)
        doubled = {name: (2 * p).detach().requires_grad_() for name, p in net.named_parameters()}
        called = torch.func.functional_call(net, doubled, (x,))
        called.sum().backward()
        assert not torch.equal(called, y)
        assert all(p.grad is not None for p in doubled.values())
        assert all(p.grad is None for p in net.parameters())


def test_network_compiles_in_one_graph() -> None:
    nets = network_triple("Generator", ngf=4, n_blocks=1)
    runs = (torch.compile(nets[0], fullgraph=True), *nets[1:])
    ys = outputs(runs, torch.randn(1, 3, 16, 16, device=DEVICE))
    check_parity("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        check_parity(name, [net.get_parameter(name).grad for net in nets])
    assert not nets[0].model[1].bias.grad.any()


def test_slices_of_a_chain_are_chains() -> None:
    """A slice of a chain keeps its settings. Feature extractors use slices to run only the first layers."""
    nets = network_triple("Generator", ngf=4, n_blocks=1)
    part = nets[0].model[:4]
    check_parity(
        "the first layers",
        outputs([part, *(net.model[:4] for net in nets[1:])], torch.randn(1, 3, 16, 16, device=DEVICE)),
    )
    assert type(part) is Chain
    assert (part.impl, Generator(ngf=4, recompute=False).model[:4].recompute) == ("triton", False)


def test_image_without_batch_dimension() -> None:
    net = Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE)
    x = torch.randn(3, 8, 8, device=DEVICE)
    assert torch.equal(net(x), net(x[None])[0])


def hooked_values(nets: list[nn.Module], x: Tensor, name: str) -> list[tuple[Tensor, ...]]:
    """Run all nets, and return the inputs and the outputs that hooks on module ``name`` received in each."""
    seen_inputs: list[Tensor] = []
    seen_outputs: list[Tensor] = []
    for net in nets:
        net.get_submodule(name).register_forward_hook(lambda m, args, out: seen_outputs.append(out.clone()))
        net.get_submodule(name).register_forward_pre_hook(lambda m, args: seen_inputs.append(args[0].clone()))
    check_parity("output", outputs(nets, x))
    return [tuple(seen_inputs), tuple(seen_outputs)]


@pytest.mark.parametrize("name", ["model.10.conv_block", "model.10", "model"])
def test_hooks_on_containers_see_the_official_values(name: str) -> None:
    """The output of conv_block excludes the residual, although the kernels add it in their last pass."""
    for seen in hooked_values(
        network_triple("Generator", ngf=4, n_blocks=1), torch.randn(1, 3, 16, 16, device=DEVICE), name
    ):
        check_parity(name, seen)


@pytest.mark.parametrize(
    "name", ["model.model.2", "model.model.1.model.4", "model.model.1.model", "model.model.1.model.3.model"]
)
def test_hooks_on_unet_skips_see_the_official_values(name: str) -> None:
    """Skips carry activated values only if no hook can see them."""
    for seen in hooked_values(
        network_triple("UnetGenerator", ngf=2, num_downs=5), torch.randn(1, 3, 64, 64, device=DEVICE), name
    ):
        check_parity(name, seen)


def test_modified_networks_compute_the_modified_function() -> None:
    """Test a custom conv_block, another activation after a skip, and a custom forward.

    A norm of the wrong size raises ValueError.
    """
    torch.manual_seed(1)
    x = torch.randn(1, 3, 64, 64, device=DEVICE)
    nets = network_triple("Generator", ngf=4, n_blocks=1)
    custom = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16)).to(DEVICE)
    for net in nets:
        net.model[10].conv_block = copy.deepcopy(custom).to(net.model[1].weight.dtype)
    check_parity("a custom conv_block", outputs(nets, x[..., :16, :16]))
    nets = network_triple("UnetGenerator", ngf=2, num_downs=5)
    for net in nets:
        net.model.model[1].model[4] = nn.LeakyReLU(0.1)
    check_parity("another activation", outputs(nets, x))
    nets = network_triple("Discriminator", ndf=4)
    for net in nets:
        net.model[2].forward = lambda x, conv=net.model[2]: 2 * conv._conv_forward(x, conv.weight, conv.bias)
    check_parity("a custom forward", outputs(nets, x))
    nets[0].model[3] = nn.InstanceNorm2d(2, affine=True).to(DEVICE)
    with pytest.raises(ValueError, match=r"weight must be \[8\], one number per channel of x, got \[2\]"):
        nets[0](x)


def test_outputs_can_be_changed_in_place() -> None:
    net = nn.Sequential(Discriminator(ndf=4, impl="triton"), nn.LeakyReLU(0.2, inplace=True)).to(DEVICE)
    net(torch.randn(1, 3, 32, 32, device=DEVICE)).sum().backward()
    assert not net[0].model[2].bias.grad.any()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_layers_that_work_in_place_can_replace_any_activation(mode: str) -> None:
    """The last layer and an activation after a norm, alone or in a slice that ends with the norm."""
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = nn.Hardtanh(inplace=True)
    nets: Any = network_triple("Generator", ngf=2, n_blocks=0)
    for net in nets:
        net.model[3], net.model[-1] = nn.SiLU(inplace=True), layer
    x = torch.randn(1, 3, 8, 8, device=DEVICE)
    slices = [net.model[:3] for net in nets]
    for name, parts in (("network", nets), ("slice", [nn.Sequential(s, layer) for s in slices])):
        called = [torch.compile(part, backend="aot_eager") for part in parts] if mode == "compiled" else parts
        ys = outputs(called, x)
        check_parity(name, ys)
        for part, y in zip(parts, ys, strict=True):
            part.zero_grad()
            y.square().sum().backward()
        check_parity(f"{name}'s gradient", [next(part.parameters()).grad for part in parts])
