"""Tests of forwards that branch on plain attributes, which are traced, or on things that no trace shows."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import (
    Norms,
    OneReluForTwoNorms,
    assert_identical,
    randomised,
    reasons_by_path,
    replaced_kinds,
)


class Tapped(Norms):
    """Base class of networks whose output depends on flags, arguments or modes.

    Most of them skip the activation and return the norm's output for certain values. A single trace follows
    only the path with the activation.
    """

    taps = False

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.extra, self.options, self.other = 1, None, {"taps": False}, False


class OnListArgument(Tapped):
    """Branches on a list argument, like the generator of CUT (Park et al., 2020)."""

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


class OnInt(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.mode == 2:
            x = x + 1
        return self.act(x)


class OnCounter(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.norm(x)
        return x if self.steps > 1 else self.act(x)


class OnOptionsDict(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if self.options["taps"] else self.act(x)


class OnString(Tapped):
    def forward(self, x: Tensor, mode: str = "train") -> Tensor:
        x = self.norm(x)
        return x if mode == "features" else self.act(x)


class OnTwoArguments(Tapped):
    def forward(self, x: Tensor, a: bool = False, b: bool = False) -> Tensor:
        x = self.norm(x)
        return x if a and b else self.act(x)


class OnGradMode(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if torch.is_grad_enabled() else x


class OnOptionalAttribute(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.extra is None else self.act(x + self.extra)


class OnIndex(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        values = [x, self.norm(x)]
        return [values[1], self.act(values[1])][self.mode]


class OnMethodArgument(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.norm(x), self.mode > 1)

    def finish(self, x: Tensor, bare: object) -> Tensor:
        return x if bare else self.act(x)


class OnKeywords(Tapped):
    def forward(self, x: Tensor, **options: bool) -> Tensor:
        x = self.norm(x)
        return x if options.get("taps") else self.act(x)


class OnAssignedSwitch(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        self.other = self.mode > 1
        x = self.norm(x)
        return x if self.other else self.act(x)


class OnModeOfLayer(Tapped):
    """Branches on the mode of a layer, and not on the mode of the network itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.norm.training else x


class OnInputType(Tapped):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, list):
            y: Tensor = self.norm(x[0])
            return y
        return self.act(self.norm(x))


TAPS = False


def tapped(module: Norms, x: Tensor) -> Tensor:
    return x if TAPS else module.act(x)


class OnGlobal(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return x if TAPS else self.act(x)


class InFunction(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        return tapped(self, self.norm(x))


class InWhileLoop(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        while self.steps > 0:
            return x
        return self.act(x)


class InExceptBlock(Tapped):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        try:
            return self.act(x[: 3 - self.mode].view(2, -1).view(x.shape))
        except RuntimeError:
            return x


class OnManySwitches(Tapped):
    a = b = c = d = e = f = g = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.a or self.b or self.c or self.d or self.e or self.f or self.g or self.taps:
            x = x * (1 if self.a else 2) * (1 if self.b else 2) * (1 if self.c else 2) * (1 if self.d else 2)
            return x * (1 if self.e else 2) * (1 if self.f else 2) * (1 if self.g else 2)
        return self.act(x)


Run = Callable[[nn.Module, Tensor], object]


def with_global_flag(net: nn.Module, x: Tensor) -> object:
    global TAPS
    TAPS = True
    try:
        return net(x)
    finally:
        TAPS = False


def with_state(**state: object) -> Run:
    def run(net: nn.Module, x: Tensor) -> object:
        net.__dict__.update(state)
        return net(x)

    return run


BRANCHES: list[tuple[type[Norms], Run, str]] = [
    (
        OnListArgument,
        lambda net, x: net(x, [1], True),
        "may branch on its argument `layers`",
    ),
    (OnInt, with_state(mode=2), "branches on `self.mode` (by `eq`)"),
    (OnCounter, with_state(steps=5), "may branch on `self.steps`"),
    (OnOptionsDict, with_state(options={"taps": True}), "may branch on `self.options`"),
    (OnString, lambda net, x: net(x, "features"), "branches on data (by `eq`)"),
    (OnTwoArguments, lambda net, x: net(x, True, True), "branches on its argument `a`"),
    (OnGradMode, torch.no_grad()(with_state()), "may branch on `torch.is_grad_enabled`"),
    (OnOptionalAttribute, with_state(extra=1.0), "may branch on `self.extra is None`"),
    (OnIndex, with_state(mode=0), "cannot be traced (list indices must be integers or slices"),
    (OnMethodArgument, with_state(mode=2), "branches on `self.mode` (by `gt`)"),
    (OnKeywords, lambda net, x: net(x, taps=True), "may branch on `options.get`"),
    (OnAssignedSwitch, with_state(mode=2), "may branch on `self.other`"),
    (OnModeOfLayer, lambda net, x: net.eval()(x), "may branch on `self.norm.training`"),
    (OnInputType, lambda net, x: net([x]), "may branch on `isinstance`"),
    (OnGlobal, with_global_flag, "may branch on `TAPS`"),
    (InFunction, with_global_flag, "may branch on `tapped`"),
    (InWhileLoop, with_state(steps=2), "may branch on `while self.steps > 0:`"),
    (InExceptBlock, with_state(mode=2), "may branch on `try:`"),
    (OnManySwitches, with_state(taps=True), "has too many branches"),
]


@pytest.mark.parametrize(
    ("kind", "run", "reason"), BRANCHES, ids=lambda value: getattr(value, "__name__", "")
)
def test_does_not_fuse_if_a_trace_does_not_show_every_path(kind: type[Norms], run: Run, reason: str) -> None:
    torch.manual_seed(0)
    net = randomised(kind())
    plain, x = copy.deepcopy(net), torch.randn(1, 3, 6, 6)
    path = "layers.1" if kind is OnListArgument else "norm"
    report = accelerate(net)
    assert replaced_kinds(report)[path] == "InstanceNorm2d"
    assert reason in reasons_by_path(report)[path]
    # Without a gradient, the C++ kernels sum in another order.
    torch.testing.assert_close(run(net, x), run(plain, x))


def test_dali_in_the_process_does_not_disturb_tracing() -> None:
    """Tracing works after an import of DALI, which replaces the check for iterables that tracing uses."""
    pytest.importorskip("nvidia.dali.fn")
    assert replaced_kinds(accelerate(OneReluForTwoNorms()))["norm2"] == "InstanceNorm2d + ReLU"


class ChecksForReLU(Norms):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = x + 1
        return x


class ChecksExactClass(Norms):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + (type(layer) is nn.InstanceNorm2d)
        return x


def test_class_checks_in_a_forward_still_work() -> None:
    torch.manual_seed(0)
    for kind, replaced in (
        (ChecksForReLU, {"InstanceNorm2d"}),
        (ChecksExactClass, set()),
    ):
        net = randomised(kind())
        plain = copy.deepcopy(net)
        report = accelerate(net)
        assert set(replaced_kinds(report).values()) == replaced
        assert_identical(net, plain, torch.randn(1, 3, 6, 6))
    assert reasons_by_path(report)["norm"] == "ChecksExactClass.forward checks the exact class of a layer"
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


def test_layers_that_another_method_may_call_are_not_fused() -> None:
    torch.manual_seed(0)
    net = Encodes()
    plain, x = copy.deepcopy(net), torch.randn(1, 3, 6, 6)
    assert reasons_by_path(accelerate(net))["layers.1"] == "Encodes.encode may call it"
    assert torch.equal(net.encode(x), plain.encode(x))


def test_forward_without_source_is_not_traced() -> None:
    space: dict[str, object] = {"Norms": Norms}
    exec("class Typed(Norms):\n    def forward(self, x):\n        return self.act(self.norm(x))", space)
    assert (
        "Typed.forward has no readable source code" in reasons_by_path(accelerate(space["Typed"]()))["norm"]
    )  # type: ignore[operator]
