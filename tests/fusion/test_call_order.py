"""Two modules become one only where every call allows it: networks in which that is so, and those in which it
only seems so.
"""

from __future__ import annotations

import copy
import functools
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import (
    ABranchOverOtherThings,
    AConvolutionWithoutItsPad,
    AForwardInPieces,
    AFunctionalActivation,
    AGrandchildCalledFromAbove,
    APadForAStrideToo,
    AReluThatAlsoFollowsAConvolution,
    AReluThatAlsoFollowsATappedNorm,
    ASequentialIterated,
    ASequentialWithASkip,
    ASliceOfASequential,
    ASumBetween,
    ATappedNorm,
    ATappedPad,
    ATappedSequential,
    CallsAForward,
    DecidesByAnArgument,
    DecidesByAnOptionalTensor,
    DecidesByASwitch,
    DecidesByChance,
    DecidesByData,
    DecidesByTorchsChance,
    DecidesByTraining,
    InPlaceBetweenPadAndConvolution,
    Norms,
    OnePadForTwoConvolutions,
    OneReluForTwoNorms,
    OtherActivationsOfOneNorm,
    PadsOfTwoSizes,
    randomised,
    same,
    whats,
    whys,
)

FUSED = [
    OneReluForTwoNorms,
    ASliceOfASequential,
    ASequentialIterated,
    ABranchOverOtherThings,
    AForwardInPieces,
    ASequentialWithASkip,
    OnePadForTwoConvolutions,
]
TRAPS = [
    AReluThatAlsoFollowsAConvolution, AReluThatAlsoFollowsATappedNorm, ATappedNorm, ATappedSequential,
    AGrandchildCalledFromAbove,
    ASumBetween, AFunctionalActivation, OtherActivationsOfOneNorm, DecidesByData, DecidesByTraining,
    DecidesByASwitch, DecidesByAnArgument,
    DecidesByAnOptionalTensor, DecidesByChance, DecidesByTorchsChance, CallsAForward,
    InPlaceBetweenPadAndConvolution, ATappedPad,
    AConvolutionWithoutItsPad, APadForAStrideToo, PadsOfTwoSizes,
]  # fmt: skip


@pytest.mark.parametrize("kind", [*FUSED, *TRAPS], ids=lambda kind: kind.__name__)
def test_fuses_what_every_call_allows(kind: type[Norms]) -> None:
    """The same function to the bit, in both modes and with the switch turned, and as many fusions as can
    be."""
    torch.manual_seed(0)
    net = randomised(kind())
    plain, state, dice = copy.deepcopy(net), torch.get_rng_state(), random.getstate()
    report = accelerate(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == dice
    used = set(getattr(kind, "fused", ()))
    # Of the layers that a forward does not call only a Sequential's own are a pair.
    pairs = {path for path, what in whats(report).items() if "+" in what}
    assert used <= pairs <= used | {"layers.1"}
    x = torch.randn(1, 3, 6, 6)
    same(net, plain, x)
    net.switch = plain.switch = False
    same(net, plain, x)
    for keywords in ({"features": True}, {"skip": x}):
        if next(iter(keywords)) in type(net).forward.__code__.co_varnames:
            assert torch.equal(net(x, **keywords), plain(x, **keywords))


@pytest.mark.parametrize(
    "kind", [ATappedSequential, AGrandchildCalledFromAbove, DecidesByData], ids=lambda kind: kind.__name__
)
def test_a_sequential_that_somebody_looks_into_stays(kind: type[Norms]) -> None:
    assert whats(accelerate(kind()))["layers.1"] == "InstanceNorm2d"


def test_what_tracing_finds_it_leaves_as_it_was() -> None:
    """A forward that writes to itself is not traced."""

    class Writes(Norms):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.steps += 1
            self.last = x
            self.seen.append(x)
            self.calls.add_(1)
            return self.act(self.norm(x))

    net = Writes()
    assert whys(accelerate(net))["norm"] == "Writes.forward may branch on `self.steps`"
    assert (net.steps, net.seen, net.calls.item(), hasattr(net, "last")) == (0, [], 0, False)
    net(torch.randn(1, 3, 4, 4))
    assert (net.steps, net.calls.item()) == (1, 1)


class Holder:
    def __init__(self, held: nn.Module) -> None:
        self.held = held

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = self.held(x)
        return y


HIDDEN: dict[str, Callable[[nn.Module], object]] = {
    "list": lambda layer: [layer],
    "dict": lambda layer: {"layers": (layer,)},
    "closure": lambda layer: lambda x: layer(x),
    "method": lambda layer: Holder(layer).run,
    "partial": lambda layer: functools.partial(nn.Module.__call__, layer),
    "reference": lambda layer: weakref.ref(layer),
}


class Borrows(nn.Module):
    """Calls a layer that is not registered with it."""

    def __init__(self, hidden: object) -> None:
        super().__init__()
        self.norm, self.hidden = nn.InstanceNorm2d(3), hidden

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.hidden
        x = x + self.norm(x)
        if isinstance(layer, weakref.ref):
            layer = layer()
        while not callable(layer):
            layer = layer["layers"] if isinstance(layer, dict) else layer[0]
        y: Tensor = layer(x)
        return y


class Lends(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.borrower(self.act(self.norm(x)))  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("how", HIDDEN)
def test_a_module_of_somewhere_else_in_the_network(how: str) -> None:
    """Called through what is no registration: it is a call all the same."""
    torch.manual_seed(0)
    net, plain = Lends(), Lends()
    for lender in (net, plain):
        lender.borrower = Borrows(HIDDEN[how](lender.act))
    report = accelerate(net)
    assert whats(report)["norm"] == "InstanceNorm2d"
    assert "Borrows.forward of borrower may branch on" in whys(report)["norm"]
    same(net, plain, torch.randn(1, 3, 4, 4))


RELU = nn.ReLU()


class OneGlobalRelu(Norms):
    """Registered here, and called by a name in the class below."""

    def __init__(self) -> None:
        super().__init__()
        self.act = RELU
        self.inner = CallsTheGlobalRelu()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.act(self.norm(x)))
        return y


class CallsTheGlobalRelu(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return RELU(self.norm(x) + 1)


class HandsALayerOn(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TakesALayer()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.act(self.norm(x)), self.act)
        return y


class TakesALayer(Norms):
    def forward(self, x: Tensor, layer: nn.Module, other: Callable[[Tensor], Tensor] = RELU) -> Tensor:
        return layer(self.norm(x) + 1) + other(-x)


class Delegates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = OneReluForTwoNorms()

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            return super().__getattr__(name)
        return getattr(self.inner, name)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(-self.inner(x))
        return y


class AChainWithAMethod(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.InstanceNorm2d(3), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x)
        return y


class InitialisesItsLayers(Norms):
    """A method that goes through all layers and calls none."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x))

    def init_weights(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.InstanceNorm2d) and layer.affine:
                nn.init.normal_(layer.weight)


@pytest.mark.parametrize(
    ("kind", "path", "fused"),
    [
        (OneGlobalRelu, "norm", False),
        (HandsALayerOn, "norm", False),
        (Delegates, "inner.norm", False),
        (AChainWithAMethod, "0", False),
        (InitialisesItsLayers, "norm", True),
    ],
)
def test_who_else_may_call_a_layer(kind: type[nn.Module], path: str, fused: bool) -> None:
    torch.manual_seed(0)
    net = randomised(kind())
    plain = copy.deepcopy(net)
    assert whats(accelerate(net))[path] == ("InstanceNorm2d + ReLU" if fused else "InstanceNorm2d")
    same(net, plain, torch.randn(1, 3, 4, 4))
    if isinstance(net, AChainWithAMethod):
        x = torch.randn(1, 3, 4, 4)
        assert torch.equal(net.features(x), plain.features(x))


class ReachesIn(nn.Module):
    """Decides by data, and calls a layer of its child's own by an attribute, or by its name."""

    def __init__(self, by_name: bool) -> None:
        super().__init__()
        self.inner, self.by_name = OneReluForTwoNorms(), by_name

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if y.sum() > 0:
            return y
        relu: nn.Module = self.get_submodule("inner.act") if self.by_name else self.inner.act
        return relu(-y)


@pytest.mark.parametrize("by_name", [False, True])
def test_who_cannot_be_followed_may_reach_into_its_children(by_name: bool) -> None:
    net = ReachesIn(by_name)
    report = accelerate(net)
    assert "the ReLU after it stays: ReachesIn.forward may branch on" in whys(report)["inner.norm"]
    assert isinstance(net.inner.act, nn.ReLU | nn.LeakyReLU)


def test_who_cannot_be_followed_is_named() -> None:
    report = accelerate(DecidesByData())
    assert whys(report)["norm"] == "DecidesByData.forward branches on data (by `gt`)"
    report = accelerate(nn.Sequential(DecidesByChance()))
    assert whys(report)["0.norm"] == "DecidesByChance.forward of 0 may branch on `random.random`"
    report = accelerate(DecidesByTorchsChance())
    assert whys(report)["norm"] == "DecidesByTorchsChance.forward may branch on `torch.rand`"
    net = OneReluForTwoNorms()
    net.forward = lambda x: net.norm(x)  # type: ignore[method-assign]
    assert whys(accelerate(net))["norm"] == "OneReluForTwoNorms.forward is an attribute of the instance"
    assert whys(accelerate(nn.ModuleList([nn.InstanceNorm2d(3), nn.ReLU()])))["0"] == "it is never called"
