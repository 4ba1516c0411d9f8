"""Test that layers that are hooked, replaced or parametrised are called as ordinary modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.nn.networks import Discriminator
from tests.nn.triples import DEVICE, check_parity, network_triple, outputs

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("index", ["1", "2", "3", "4", "10", "10.conv_block.1", "10.conv_block.2"])
def test_hooks_fire_and_outputs_match(index: str) -> None:
    """A hooked layer is called as a module, and its hook receives the values of the official network."""
    nets = network_triple("Generator", ngf=4, n_blocks=1)
    seen: list[Tensor] = []
    for net in nets:
        net.get_submodule(f"model.{index}").register_forward_hook(lambda m, args, out: seen.append(out))
    check_parity("output", outputs(nets, torch.randn(1, 3, 16, 16, device=DEVICE)))
    check_parity(index, seen)


def test_replaced_layer_is_called() -> None:
    class DoubledConv2d(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    nets, doubled = network_triple("Discriminator", ndf=4), DoubledConv2d(4, 8, 4, 2, 1).to(DEVICE)
    for net in nets:
        net.model[2] = copy.deepcopy(doubled).to(net.model[0].weight.dtype)
    check_parity("output", outputs(nets, torch.randn(1, 3, 32, 32, device=DEVICE)))


def test_parametrised_weights_are_used() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE)
    x = torch.randn(1, 3, 32, 32, device=DEVICE)
    torch.nn.utils.parametrizations.weight_norm(net.model[2])
    net(x).sum().backward()
    assert net.model[2].parametrizations.weight.original0.grad is not None
