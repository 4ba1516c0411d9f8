"""Layers that somebody listens to, replaced or parametrised are called as the modules that they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.nn.networks import Discriminator
from tests.nn.triples import DEVICE, hold, outputs, three

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("index", ["1", "2", "3", "4", "10", "10.conv_block.1", "10.conv_block.2"])
def test_hooks_fire_and_the_function_stays(index: str) -> None:
    """A layer that somebody listens to is called as a module, with the values that it has in the official
    network.
    """
    nets = three("Generator", ngf=4, n_blocks=1)
    seen: list[Tensor] = []
    for net in nets:
        net.get_submodule(f"model.{index}").register_forward_hook(lambda m, args, out: seen.append(out))
    hold("output", outputs(nets, torch.randn(1, 3, 16, 16, device=DEVICE)))
    hold(index, seen)


def test_a_replaced_layer_is_called() -> None:
    class Loud(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    nets, loud = three("Discriminator", ndf=4), Loud(4, 8, 4, 2, 1).to(DEVICE)
    for net in nets:
        net.model[2] = copy.deepcopy(loud).to(net.model[0].weight.dtype)
    hold("output", outputs(nets, torch.randn(1, 3, 32, 32, device=DEVICE)))


def test_parametrised_weights_are_used() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE)
    x = torch.randn(1, 3, 32, 32, device=DEVICE)
    torch.nn.utils.parametrizations.weight_norm(net.model[2])
    net(x).sum().backward()
    assert net.model[2].parametrizations.weight.original0.grad is not None
