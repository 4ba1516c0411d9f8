"""What a forward decides by, in states that a trace of it does not show."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import Norms, randomised, same, whats, whys


class Tapped(Norms):
    """Its norm's result is given away, in states that its trace as it is does not show."""

    taps = False

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.extra, self.options, self.other = 1, None, {"taps": False}, False


class ByAList(Tapped):
    """CUT's generator: Park et al., 2020."""

    def forward(self, x: Tensor, layers: list[int] = [], encode_only: bool = False) -> Tensor | list[Tensor]:  # noqa: B006
        if len(layers) > 0:
            features = []
            for n, layer in enumerate(self.layers):
                x = layer(x)
                if n in layers:
                    features.append(x)
                if n == layers[-1] and encode_only:
                    return features
            return features
        y: Tensor = self.layers(x)
        return y


class ByAnInt(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.mode == 2:
            x = x + 1
        return self.act(x)


class ByACounter(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.norm(x)
        return x if self.steps > 1 else self.act(x)


class ByAConfiguration(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if self.options["taps"] else self.act(x)


class ByAText(Tapped):
    def forward(self, x: Tensor, mode: str = "train") -> Tensor:
        x = self.norm(x)
        return x if mode == "features" else self.act(x)


class ByTwoArguments(Tapped):
    def forward(self, x: Tensor, a: bool = False, b: bool = False) -> Tensor:
        x = self.norm(x)
        return x if a and b else self.act(x)


class ByGradients(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if torch.is_grad_enabled() else x


class ByAnAttributeThatMayBeNone(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.extra is None else self.act(x + self.extra)


class ByAnIndex(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        found = [x, self.norm(x)]
        return [found[1], self.act(found[1])][self.mode]


class ByAMethodsArgument(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.norm(x), self.mode > 1)

    def finish(self, x: Tensor, bare: object) -> Tensor:
        return x if bare else self.act(x)


class ByKeywords(Tapped):
    def forward(self, x: Tensor, **options: bool) -> Tensor:
        x = self.norm(x)
        return x if options.get("taps") else self.act(x)


class ByASwitchThatItSets(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        self.other = self.mode > 1
        x = self.norm(x)
        return x if self.other else self.act(x)


Run = Callable[[nn.Module, Tensor], object]


def having(**state: object) -> Run:
    def run(net: nn.Module, x: Tensor) -> object:
        net.__dict__.update(state)
        return net(x)

    return run


DECISIONS: list[tuple[type[Norms], Run, str]] = [
    (ByAList, lambda net, x: net(x, [1], True), "decides by more than its switches: len(layers) > 0"),
    (ByAnInt, having(mode=2), "decides by more than its switches: self.mode == 2"),
    (ByACounter, having(steps=5), "decides by more than its switches: self.steps > 1"),
    (
        ByAConfiguration,
        having(options={"taps": True}),
        "decides by more than its switches: self.options['taps']",
    ),
    (ByAText, lambda net, x: net(x, "features"), "decides by more than its switches: mode == 'features'"),
    (ByTwoArguments, lambda net, x: net(x, True, True), "its result leaves ByTwoArguments.forward"),
    (ByGradients, torch.no_grad()(having()), "decides by more than its switches: torch.is_grad_enabled()"),
    (
        ByAnAttributeThatMayBeNone,
        having(extra=1.0),
        "its result goes to add in ByAnAttributeThatMayBeNone.forward",
    ),
    (
        ByAnIndex,
        having(mode=0),
        "decides by more than its switches: [found[1], self.act(found[1])][self.mode]",
    ),
    (ByAMethodsArgument, having(mode=2), "decides by more than its switches: bare"),
    (ByKeywords, lambda net, x: net(x, taps=True), "ByKeywords.forward cannot be followed"),
    (ByASwitchThatItSets, having(mode=2), "decides by more than its switches: self.other"),
]


@pytest.mark.parametrize(("kind", "run", "why"), DECISIONS, ids=lambda value: getattr(value, "__name__", ""))
def test_states_that_a_trace_does_not_show(kind: type[Norms], run: Run, why: str) -> None:
    torch.manual_seed(0)
    net = randomised(kind())
    plain, x = copy.deepcopy(net), torch.randn(1, 3, 6, 6)
    path = "layers.1" if kind is ByAList else "norm"
    report = accelerate(net)
    assert whats(report)[path] == "InstanceNorm2d"
    assert why in whys(report)[path]
    torch.testing.assert_close(run(net, x), run(plain, x), rtol=0, atol=0)


def test_dali_in_the_process_decides_nothing() -> None:
    """It puts a function of its own in the place of what Python asks whether something is iterable, and
    torch's tracing asks that.
    """
    pytest.importorskip("nvidia.dali.fn")
    assert "decides by more than its switches: len(layers) > 0" in whys(accelerate(ByAList()))["norm"]


class AsksForReLUs(Norms):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = x + 1
        return x


class AsksForTheClass(Norms):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + (type(layer) is nn.InstanceNorm2d)
        return x


def test_who_asks_for_a_layers_class_finds_it() -> None:
    torch.manual_seed(0)
    for kind, replaced in (
        (AsksForReLUs, {"InstanceNorm2d + ReLU", "InstanceNorm2d"}),
        (AsksForTheClass, set()),
    ):
        net = randomised(kind())
        plain = copy.deepcopy(net)
        report = accelerate(net)
        assert set(whats(report).values()) == replaced
        same(net, plain, torch.randn(1, 3, 6, 6))
    assert whys(report)["norm"] == "AsksForTheClass.forward asks for the very class of a layer"
    pair = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3), nn.LeakyReLU(0.1))
    accelerate(pair)
    assert isinstance(pair[0], nn.ReflectionPad2d)
    assert isinstance(pair[3], nn.LeakyReLU)
    assert "fused" in repr(pair[0])


class Encodes(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y

    def encode(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers[1](self.layers[0](x))
        return y


def test_what_another_method_may_call_stays() -> None:
    torch.manual_seed(0)
    net = Encodes()
    plain, x = copy.deepcopy(net), torch.randn(1, 3, 6, 6)
    assert whys(accelerate(net))["layers.1"] == "Encodes.encode may call it"
    assert torch.equal(net.encode(x), plain.encode(x))


def test_a_forward_without_source_is_not_followed() -> None:
    space: dict[str, object] = {"Norms": Norms}
    exec("class Typed(Norms):\n    def forward(self, x):\n        return self.act(self.norm(x))", space)
    assert "the source of forward is not known" in whys(accelerate(space["Typed"]()))["norm"]  # type: ignore[operator]
