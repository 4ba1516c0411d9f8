"""Two modules are fused only if no call prevents it.

This is tested on networks that allow fusion, and on networks that only appear to.
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
    BranchesOnArgument,
    BranchesOnData,
    BranchesOnOptionalTensor,
    BranchesOnPythonRandom,
    BranchesOnSwitch,
    BranchesOnTorchRandom,
    BranchesOnTraining,
    CallsForwardDirectly,
    ConvolutionAlsoWithoutPad,
    ForwardInHelperMethods,
    FunctionalActivation,
    GrandchildCalledDirectly,
    InPlaceBetweenPadAndConvolution,
    IteratedSequential,
    Norms,
    OnePadForTwoConvolutions,
    OneReluForTwoNorms,
    PadAlsoBeforeStride,
    ReluAlsoAfterConvolution,
    ReluAlsoAfterTappedNorm,
    SequentialWithSkip,
    SlicedSequential,
    SumInBetween,
    TappedNorm,
    TappedPad,
    TappedSequential,
    TwoActivationsOfOneNorm,
    TwoPadSizes,
    UnrelatedBranch,
    assert_identical,
    randomised,
    reasons_by_path,
    replaced_kinds,
)

FUSED = [
    OneReluForTwoNorms,
    SlicedSequential,
    IteratedSequential,
    UnrelatedBranch,
    ForwardInHelperMethods,
    SequentialWithSkip,
    OnePadForTwoConvolutions,
]
TRAPS = [
    ReluAlsoAfterConvolution, ReluAlsoAfterTappedNorm, TappedNorm, TappedSequential,
    GrandchildCalledDirectly,
    SumInBetween, FunctionalActivation, TwoActivationsOfOneNorm, BranchesOnData, BranchesOnTraining,
    BranchesOnSwitch, BranchesOnArgument,
    BranchesOnOptionalTensor, BranchesOnPythonRandom, BranchesOnTorchRandom, CallsForwardDirectly,
    InPlaceBetweenPadAndConvolution, TappedPad,
    ConvolutionAlsoWithoutPad, PadAlsoBeforeStride, TwoPadSizes,
]  # fmt: skip


@pytest.mark.parametrize("kind", [*FUSED, *TRAPS], ids=lambda kind: kind.__name__)
def test_fuses_only_if_every_call_allows_it(kind: type[Norms]) -> None:
    """Every pair that can be fused is fused, and no other.

    Results are bit-identical in both modes and for both values of the switch.
    """
    torch.manual_seed(0)
    net = randomised(kind())
    plain, torch_state, python_state = copy.deepcopy(net), torch.get_rng_state(), random.getstate()
    report = accelerate(net)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    expected = set(getattr(kind, "fused", ()))
    # Of the layers that a forward does not call, only those inside the Sequential form a pair.
    pairs = {path for path, replaced in replaced_kinds(report).items() if "+" in replaced}
    assert expected <= pairs <= expected | {"layers.1"}
    x = torch.randn(1, 3, 6, 6)
    assert_identical(net, plain, x)
    net.switch = plain.switch = False
    assert_identical(net, plain, x)
    for keywords in ({"features": True}, {"skip": x}):
        if next(iter(keywords)) in type(net).forward.__code__.co_varnames:
            assert torch.equal(net(x, **keywords), plain(x, **keywords))


@pytest.mark.parametrize(
    "kind", [TappedSequential, GrandchildCalledDirectly, BranchesOnData], ids=lambda kind: kind.__name__
)
def test_sequential_with_used_inner_outputs_is_not_fused(kind: type[Norms]) -> None:
    assert replaced_kinds(accelerate(kind()))["layers.1"] == "InstanceNorm2d"


def test_tracing_changes_nothing() -> None:
    """A forward that changes its module is not traced."""

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
    assert reasons_by_path(accelerate(net))["norm"] == "Writes.forward may branch on `self.steps`"
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
    """Calls a layer that is not registered as one of its modules."""

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


@pytest.mark.parametrize("reference", HIDDEN)
def test_counts_calls_through_hidden_references(reference: str) -> None:
    """A call through an unregistered reference counts as a call of the layer, so it is not fused."""
    torch.manual_seed(0)
    net, plain = Lends(), Lends()
    for lender in (net, plain):
        lender.borrower = Borrows(HIDDEN[reference](lender.act))
    report = accelerate(net)
    assert replaced_kinds(report)["norm"] == "InstanceNorm2d"
    assert "Borrows.forward of module borrower may branch on" in reasons_by_path(report)["norm"]
    assert_identical(net, plain, torch.randn(1, 3, 4, 4))


RELU = nn.ReLU()


class OneGlobalRelu(Norms):
    """Registers a global ReLU, which the class below calls by its global name."""

    def __init__(self) -> None:
        super().__init__()
        self.act = RELU
        self.inner = CallsGlobalRelu()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.act(self.norm(x)))
        return y


class CallsGlobalRelu(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return RELU(self.norm(x) + 1)


class PassesLayerOn(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.inner = TakesLayer()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.act(self.norm(x)), self.act)
        return y


class TakesLayer(Norms):
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


class SequentialWithMethod(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.InstanceNorm2d(3), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self[0](x)
        return y


class InitialisesLayers(Norms):
    """Has a method that iterates over all layers but calls none of them."""

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
        (PassesLayerOn, "norm", False),
        (Delegates, "inner.norm", False),
        (SequentialWithMethod, "0", False),
        (InitialisesLayers, "norm", True),
    ],
)
def test_finds_other_callers_of_a_layer(kind: type[nn.Module], path: str, fused: bool) -> None:
    torch.manual_seed(0)
    net = randomised(kind())
    plain = copy.deepcopy(net)
    assert replaced_kinds(accelerate(net))[path] == ("InstanceNorm2d + ReLU" if fused else "InstanceNorm2d")
    assert_identical(net, plain, torch.randn(1, 3, 4, 4))
    if isinstance(net, SequentialWithMethod):
        x = torch.randn(1, 3, 4, 4)
        torch.testing.assert_close(net.features(x), plain.features(x))


class ReachesIntoChild(nn.Module):
    """Branches on data, and calls a layer of its child by attribute or by name."""

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
def test_untraceable_forward_may_call_layers_of_its_children(by_name: bool) -> None:
    net = ReachesIntoChild(by_name)
    report = accelerate(net)
    assert (
        "the ReLU after it cannot be fused: ReachesIntoChild.forward may branch on"
        in reasons_by_path(report)["inner.norm"]
    )
    assert isinstance(net.inner.act, nn.ReLU | nn.LeakyReLU)


def test_report_names_untraceable_forwards() -> None:
    report = accelerate(BranchesOnData())
    assert reasons_by_path(report)["norm"] == "BranchesOnData.forward branches on data (by `gt`)"
    report = accelerate(nn.Sequential(BranchesOnPythonRandom()))
    assert (
        reasons_by_path(report)["0.norm"]
        == "BranchesOnPythonRandom.forward of module 0 may branch on `random.random`"
    )
    report = accelerate(BranchesOnTorchRandom())
    assert reasons_by_path(report)["norm"] == "BranchesOnTorchRandom.forward may branch on `torch.rand`"
    net = OneReluForTwoNorms()
    net.forward = lambda x: net.norm(x)  # type: ignore[method-assign]
    assert (
        reasons_by_path(accelerate(net))["norm"] == "OneReluForTwoNorms.forward was replaced on the instance"
    )
    assert (
        reasons_by_path(accelerate(nn.ModuleList([nn.InstanceNorm2d(3), nn.ReLU()])))["0"]
        == "no call to it was found"
    )
