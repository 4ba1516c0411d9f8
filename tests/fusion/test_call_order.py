"""Two modules become one only where every call allows it: networks in which that is so, and those in which it
only seems so.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import (
    AConvolutionWithoutItsPad,
    AFunctionalActivation,
    AGrandchildCalledFromAbove,
    APadForAStrideToo,
    AReluThatAlsoFollowsAConvolution,
    AReluThatAlsoFollowsATappedNorm,
    ASequentialIterated,
    ASliceOfASequential,
    AStructureThatIsOptional,
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
    AStructureThatIsOptional,
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
    if not isinstance(net, AStructureThatIsOptional):
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
    """A forward that writes to itself: no trace of a trace."""

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
    assert whats(accelerate(net))["norm"] == "InstanceNorm2d + ReLU"
    assert (net.steps, net.seen, net.calls.item(), hasattr(net, "last")) == (0, [], 0, False)
    net(torch.randn(1, 3, 4, 4))
    assert (net.steps, net.calls.item()) == (1, 1)


def test_a_module_of_somewhere_else_in_the_network() -> None:
    """Called through a list that is no registration: it is a call all the same."""

    class Borrows(nn.Module):
        def __init__(self, borrowed: nn.Module) -> None:
            super().__init__()
            self.norm, self.borrowed = nn.InstanceNorm2d(3), [borrowed]

        def forward(self, x: Tensor) -> Tensor:
            return self.borrowed[0](x + self.norm(x))

    class Lends(Norms):
        def __init__(self) -> None:
            super().__init__()
            self.borrower = Borrows(self.act)

        def forward(self, x: Tensor) -> Tensor:
            return self.borrower(self.act(self.norm(x)))

    torch.manual_seed(0)
    net = Lends()
    plain = copy.deepcopy(net)
    assert whats(accelerate(net))["norm"] == "InstanceNorm2d"
    same(net, plain, torch.randn(1, 3, 4, 4))


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
    assert "ReachesIn.forward cannot be followed" in whys(report)["inner.norm"]
    assert isinstance(net.inner.act, nn.ReLU | nn.LeakyReLU)


def test_who_cannot_be_followed_is_named() -> None:
    report = accelerate(DecidesByData())
    assert whys(report)["norm"].startswith(
        "DecidesByData.forward cannot be followed (symbolically traced variables cannot be used"
    )
    report = accelerate(nn.Sequential(DecidesByChance()))
    assert (
        whys(report)["0.norm"] == "DecidesByChance.forward of 0 cannot be followed (it draws random numbers)"
    )
    net = OneReluForTwoNorms()
    net.forward = lambda x: net.norm(x)  # type: ignore[method-assign]
    assert "it is an attribute of the instance" in whys(accelerate(net))["norm"]
    assert whys(accelerate(nn.ModuleList([nn.InstanceNorm2d(3), nn.ReLU()])))["0"] == "it is never called"
