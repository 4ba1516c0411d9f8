"""What a forward decides by: plain attributes, and what no trace shows, so that it is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import Norms, OneReluForTwoNorms, randomised, same, whats, whys


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


class ByAnotherMode(Tapped):
    """Of a layer, not its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.norm.training else x


class ByItsInput(Tapped):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, list):
            y: Tensor = self.norm(x[0])
            return y
        return self.act(self.norm(x))


TAPS = False


def tapped(module: Norms, x: Tensor) -> Tensor:
    return x if TAPS else module.act(x)


class ByAGlobal(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if TAPS else self.act(x)


class ByAFunction(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        return tapped(self, self.norm(x))


class ByALoop(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        while self.steps > 0:
            return x
        return self.act(x)


class ByFailure(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        try:
            return self.act(x[: 3 - self.mode].view(2, -1).view(x.shape))
        except RuntimeError:
            return x


class ByManySwitches(Tapped):
    a = b = c = d = e = f = g = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.a or self.b or self.c or self.d or self.e or self.f or self.g or self.taps:
            x = x * (1 if self.a else 2) * (1 if self.b else 2) * (1 if self.c else 2) * (1 if self.d else 2)
            return x * (1 if self.e else 2) * (1 if self.f else 2) * (1 if self.g else 2)
        return self.act(x)


Run = Callable[[nn.Module, Tensor], object]


def given_globally(net: nn.Module, x: Tensor) -> object:
    global TAPS
    TAPS = True
    try:
        return net(x)
    finally:
        TAPS = False


def having(**state: object) -> Run:
    def run(net: nn.Module, x: Tensor) -> object:
        net.__dict__.update(state)
        return net(x)

    return run


DECISIONS: list[tuple[type[Norms], Run, str]] = [
    (
        ByAList,
        lambda net, x: net(x, [1], True),
        "may branch on its argument `layers`",
    ),
    (ByAnInt, having(mode=2), "branches on `self.mode` (by `eq`)"),
    (ByACounter, having(steps=5), "may branch on `self.steps`"),
    (ByAConfiguration, having(options={"taps": True}), "may branch on `self.options`"),
    (ByAText, lambda net, x: net(x, "features"), "branches on data (by `eq`)"),
    (ByTwoArguments, lambda net, x: net(x, True, True), "branches on its argument `a`"),
    (ByGradients, torch.no_grad()(having()), "may branch on `torch.is_grad_enabled`"),
    (ByAnAttributeThatMayBeNone, having(extra=1.0), "may branch on `self.extra is None`"),
    (ByAnIndex, having(mode=0), "cannot be traced (list indices must be integers or slices"),
    (ByAMethodsArgument, having(mode=2), "branches on `self.mode` (by `gt`)"),
    (ByKeywords, lambda net, x: net(x, taps=True), "may branch on `options.get`"),
    (ByASwitchThatItSets, having(mode=2), "may branch on `self.other`"),
    (ByAnotherMode, lambda net, x: net.eval()(x), "may branch on `self.norm.training`"),
    (ByItsInput, lambda net, x: net([x]), "may branch on `isinstance`"),
    (ByAGlobal, given_globally, "may branch on `TAPS`"),
    (ByAFunction, given_globally, "may branch on `tapped`"),
    (ByALoop, having(steps=2), "may branch on `while self.steps > 0:`"),
    (ByFailure, having(mode=2), "may branch on `try:`"),
    (ByManySwitches, having(taps=True), "branches too often"),
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
    assert whats(accelerate(OneReluForTwoNorms()))["norm2"] == "InstanceNorm2d + ReLU"


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
        (AsksForReLUs, {"InstanceNorm2d"}),
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
    assert "Typed.forward has no source that can be read" in whys(accelerate(space["Typed"]()))["norm"]  # type: ignore[operator]
