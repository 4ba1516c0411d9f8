"""A graph has a node for each map, and a network that is not understood is refused by the name of a layer.

That the graphs compute what the networks compute is tested in ``test_execute.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.compat.networks import ResnetGenerator
from fastcyclegan.compat.networks import UnetGenerator as CompatUnet
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.tiles.graph import ForeignLayerError, graph_of, order_of
from fastcyclegan.tiles.nodes import (
    Convolved,
    Image,
    Joined,
    Node,
    Normalised,
    Padded,
    Pointwise,
    Repeated,
    Summed,
    Transposed,
)
from tests.tiles.whole import image, randomised, tiled


def kinds(net: nn.Module) -> list[type[Node]]:
    return [type(node) for node in order_of(graph_of(net.eval(), 3)[1])]


def resnet(**options: Any) -> Generator:
    return Generator(ngf=4, n_blocks=1, impl="reference", **options)


def test_a_residual_block_is_two_norms_of_which_one_adds_the_block_s_input() -> None:
    order = order_of(graph_of(resnet(), 3)[1])
    normed = [node for node in order if isinstance(node, Normalised)]
    assert [len(node.inputs) for node in normed] == [1, 1, 1, 1, 2, 1, 1]
    # The activations are part of the norms, except of that which adds, and the tanh of the last convolution.
    assert [node.norm().act for node in normed] == ["relu"] * 4 + ["none"] + ["relu"] * 2
    assert normed[4].inputs[1] is normed[2]
    assert not any(isinstance(node, Pointwise) for node in order)
    assert kinds(resnet(norm="none")).count(Summed) == 1


def test_a_unet_joins_what_is_activated_already() -> None:
    """The ReLU after a skip is part of the norm of what comes from below, and of a norm of the skip's own."""
    order = order_of(graph_of(UnetGenerator(ngf=4, num_downs=5, impl="reference").eval(), 3)[1])
    joined = [node for node in order if isinstance(node, Joined)]
    assert len(joined) == 4
    for node in joined[:-1]:
        assert all(isinstance(one, Normalised) and one.norm().act == "relu" for one in node.inputs)
        assert node.channels == sum(one.channels for one in node.inputs)
    # The outermost skip has no norm.
    assert [type(one) for one in joined[-1].inputs] == [Pointwise, Normalised]


def test_each_map_follows_its_inputs_and_is_there_once() -> None:
    start, result = graph_of(UnetGenerator(ngf=4, num_downs=5, impl="reference").eval(), 3)
    order = order_of(result)
    places = {node: number for number, node in enumerate(order)}
    assert len(places) == len(order)
    assert order[0] is start
    assert order[-1] is result
    for node in order:
        assert all(places[one] < places[node] for one in node.inputs)


def test_layers_become_these_nodes() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Dropout(),
        reference.ResizeConv2d(4, 4),
        nn.ConvTranspose2d(4, 3, 2),
    )
    order = [Image, Padded, Convolved, Pointwise, Repeated, Repeated, Padded, Convolved, Transposed]
    assert kinds(net) == order


@pytest.mark.parametrize(
    "net",
    [
        reference.Generator(ngf=4, n_blocks=1),
        reference.UnetGenerator(ngf=4, num_downs=5),
        reference.Discriminator(ndf=4),
        ResnetGenerator(3, 3, ngf=4, n_blocks=1, impl="reference"),
        CompatUnet(3, 3, 5, ngf=4, impl="reference"),
    ],
    ids=lambda net: f"{type(net).__module__}.{type(net).__name__}",
)
def test_networks_of_other_classes_with_our_forwards(net: nn.Module) -> None:
    torch.manual_seed(0)
    net, x = randomised(net).double(), image((64, 32))
    with torch.no_grad():
        assert (tiled(net, x, 24) - net(x)).abs().max() < 1e-10


def test_what_a_convolution_reads_after_its_attributes_were_changed() -> None:
    """PyTorch reads ``padding`` for zeros, and another attribute for the other modes."""
    net, x = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2)).double(), image((12, 16))
    with torch.no_grad():
        net[0].padding = (1, 2)
        assert (tiled(net, x, 8) - net(x)).abs().max() < 1e-10
        net[0].padding_mode = "reflect"
        assert (tiled(net, x, 8) - net(x)).abs().max() < 1e-10


# --- Foreign layers -----------------------------------------------------------------------------------------


class OwnConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1))


class OwnBlock(reference.ResidualBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x - self.conv_block(x)


class OwnGenerator(Generator):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1))


class Attention(nn.Module):
    """Reads all pixels for each."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.query(x).flatten(2)
        return x + (flat @ (flat.mT @ flat).softmax(-1)).view_as(x)


def hooked(register: str) -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    getattr(layer, register)(lambda *args: None)
    return layer


def with_own_forward() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = lambda x: x.flip(-1)  # type: ignore[method-assign]
    return layer


FOREIGN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hook": (lambda: hooked("register_forward_hook"), "Conv2d) has hooks or a forward of its own"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), "Conv2d) has hooks or a forward of its own"),
    "subclass": (lambda: OwnConv(4, 4, 3), "OwnConv) has hooks or a forward of its own"),
    "forward": (with_own_forward, "ReLU) has hooks or a forward of its own"),
    "block": (lambda: OwnBlock(4, "instance", False, False), "OwnBlock) has hooks or a forward of its own"),
    "network": (lambda: OwnGenerator(4, 4, 4, 1), "OwnGenerator) has hooks or a forward of its own"),
    "group norm": (lambda: nn.GroupNorm(2, 4), "GroupNorm) is not a layer of ours"),
    "attention": (Attention, "Attention) is not a layer of ours"),
    "pooling": (lambda: nn.AdaptiveAvgPool2d(4), "AdaptiveAvgPool2d) is not a layer of ours"),
    "circular": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        "Conv2d) pads in the mode circular",
    ),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "Upsample) does not repeat pixels"),
    "half": (lambda: nn.Upsample(scale_factor=1.5), "Upsample) does not repeat pixels"),
    "to a size": (lambda: nn.Upsample(size=(20, 20)), "Upsample) does not repeat pixels"),
    "batch norm": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "BatchNorm2d) has no running statistics",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_layers_are_named(name: str) -> None:
    make, reason = FOREIGN[name]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU(), make())).eval()
    with pytest.raises(ForeignLayerError) as error:
        graph_of(net, 3)
    assert str(error.value).startswith(f"exact tiles: Sequential.1.1 ({reason}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["model", "model.10", "model.10.conv_block", "model.10.conv_block.2", "model.19"]
)
def test_hooks_anywhere_in_a_network_are_found(name: str) -> None:
    net = resnet().eval()
    net.get_submodule(name).register_forward_hook(lambda *args: None)
    with pytest.raises(ForeignLayerError, match=rf"Generator\.{name} \("):
        graph_of(net, 3)


def test_a_hook_on_a_tanh_is_found() -> None:
    """A convolution computes the tanh that follows it, but not that of another class or with a hook."""
    net = resnet().eval()
    net.model[-1].register_forward_hook(lambda *args: None)
    with pytest.raises(ForeignLayerError, match="FloatTanh"):
        graph_of(net, 3)


def test_hooks_of_all_modules_are_found() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        with pytest.raises(ForeignLayerError):
            graph_of(resnet().eval(), 3)
    finally:
        handle.remove()
