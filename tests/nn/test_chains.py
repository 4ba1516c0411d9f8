"""InstanceNormAct as torch's modules, and chains: what falls apart when somebody listens, replaces or freezes
a member.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import InstanceNormAct
from fastcyclegan.nn.chains import Chain
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.testing import parameters_that_count
from tests.nn.triples import DEVICE, hold, outputs, three

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


def test_a_whole_network_compiles_in_one_graph() -> None:
    nets = three("Generator", ngf=4, n_blocks=1)
    runs = (torch.compile(nets[0], fullgraph=True), *nets[1:])
    ys = outputs(runs, torch.randn(1, 3, 16, 16, device=DEVICE))
    hold("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        hold(name, [net.get_parameter(name).grad for net in nets])
    assert not nets[0].model[1].bias.grad.any()


def test_slices_of_a_chain_are_chains() -> None:
    """Feature extractors run the first layers alone."""
    nets = three("Generator", ngf=4, n_blocks=1)
    part = nets[0].model[:4]
    hold(
        "the first layers",
        outputs([part, *(net.model[:4] for net in nets[1:])], torch.randn(1, 3, 16, 16, device=DEVICE)),
    )
    assert type(part) is Chain
    assert (part.impl, Generator(ngf=4, recompute=False).model[:4].recompute) == ("triton", False)


def test_a_image_without_the_dimension_of_the_batch() -> None:
    net = Generator(ngf=4, n_blocks=1, impl="triton").to(DEVICE)
    x = torch.randn(3, 8, 8, device=DEVICE)
    assert torch.equal(net(x), net(x[None])[0])


def listened_to(nets: list[nn.Module], x: Tensor, name: str) -> list[tuple[Tensor, ...]]:
    """Run all nets and return what hooks on module ``name`` saw: what went in, in each net, and what came
    out.
    """
    given: list[Tensor] = []
    made: list[Tensor] = []
    for net in nets:
        net.get_submodule(name).register_forward_hook(lambda m, args, out: made.append(out.clone()))
        net.get_submodule(name).register_forward_pre_hook(lambda m, args: given.append(args[0].clone()))
    hold("output", outputs(nets, x))
    return [tuple(given), tuple(made)]


@pytest.mark.parametrize("name", ["model.10.conv_block", "model.10", "model"])
def test_containers_show_their_own_values(name: str) -> None:
    """The residual's sum is not part of what conv_block returns, though the kernels add it in conv_block's
    last pass.
    """
    for seen in listened_to(
        three("Generator", ngf=4, n_blocks=1), torch.randn(1, 3, 16, 16, device=DEVICE), name
    ):
        hold(name, seen)


@pytest.mark.parametrize(
    "name", ["model.model.2", "model.model.1.model.4", "model.model.1.model", "model.model.1.model.3.model"]
)
def test_a_u_nets_skips_show_their_own_values(name: str) -> None:
    """Skips carry activated values only where nobody can see them."""
    for seen in listened_to(
        three("UnetGenerator", ngf=2, num_downs=5), torch.randn(1, 3, 64, 64, device=DEVICE), name
    ):
        hold(name, seen)


def test_surgery_on_blocks_keeps_its_meaning() -> None:
    """A conv_block of one's own, another activation after a skip, a forward of one's own, a norm of other
    channels.
    """
    torch.manual_seed(1)
    x = torch.randn(1, 3, 64, 64, device=DEVICE)
    nets = three("Generator", ngf=4, n_blocks=1)
    mine = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.InstanceNorm2d(16)).to(DEVICE)
    for net in nets:
        net.model[10].conv_block = copy.deepcopy(mine).to(net.model[1].weight.dtype)
    hold("a conv_block of one's own", outputs(nets, x[..., :16, :16]))
    nets = three("UnetGenerator", ngf=2, num_downs=5)
    for net in nets:
        net.model.model[1].model[4] = nn.LeakyReLU(0.1)
    hold("another activation", outputs(nets, x))
    nets = three("Discriminator", ndf=4)
    for net in nets:
        net.model[2].forward = lambda x, conv=net.model[2]: 2 * conv._conv_forward(x, conv.weight, conv.bias)
    hold("a forward of one's own", outputs(nets, x))
    nets[0].model[3] = nn.InstanceNorm2d(2, affine=True).to(DEVICE)
    with pytest.raises(ValueError, match=r"weight must be \[8\], a number for each channel of x, got \[2\]"):
        nets[0](x)


def test_outputs_may_be_changed_in_place() -> None:
    net = nn.Sequential(Discriminator(ndf=4, impl="triton"), nn.LeakyReLU(0.2, inplace=True)).to(DEVICE)
    net(torch.randn(1, 3, 32, 32, device=DEVICE)).sum().backward()
    assert not net[0].model[2].bias.grad.any()
