"""Networks that call their layers in ways that no trace of a forward shows still give the same results."""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from tests.fusion.networks import PAD, randomised

Drive = Callable[[Any, Tensor], Any]


def forward(net: Any, x: Tensor) -> Any:
    return net(x)


def features(net: Any, x: Tensor) -> Any:
    return net.features(x)


def with_flag(net: Any, x: Tensor) -> Any:
    net.mode = "taps"
    net.flag = True
    return net(x)


def results(net: nn.Module, drive: Drive) -> list[Any]:
    """Run ``drive`` on ``net`` and propagate gradients back from its results.

    Returns the results, the number of results that require a gradient, and the parameters' gradients.
    """
    torch.manual_seed(1)
    outputs = drive(net, torch.randn(2, 3, 8, 8).requires_grad_())
    tensors = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    with_gradient = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    if with_gradient:
        sum(t.square().sum() for t in with_gradient).backward()  # type: ignore[union-attr]
    return [*tensors, len(with_gradient), *(p.grad for p in net.parameters())]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pad, self.conv = PAD(1), nn.Conv2d(3, 3, 3)
        self.norm, self.act = nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.2)
        self.mode, self.flag = "act", False

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(self.pad(x))))


def chain() -> nn.Sequential:
    return nn.Sequential(PAD(1), nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.2))


class Runs(nn.Module):
    """Runs any function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# --- One layer in several pairs -----------------------------------------------------------------------------


def one_norm_for_two_activations() -> nn.Module:
    norm = nn.InstanceNorm2d(3, affine=True)
    return nn.Sequential(norm, nn.LeakyReLU(0.2), norm, nn.LeakyReLU(0.2))


class OneConvolutionForTwoPads(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.pad2 = PAD(1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.pad2(x) if self.flag else self.pad(x))
        return y


# --- Parts without gradients --------------------------------------------------------------------------------


class NoGradientForTheActivation(Layers):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(self.pad(x)))
        with torch.no_grad():
            return self.act(y), y.sum()


class NoGradientForThePad(Layers):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            padded = self.pad(x)
        y: Tensor = self.conv(padded)
        return y


# --- Layers that are held elsewhere -------------------------------------------------------------------------


class HeldByLambda(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.skip = Runs(lambda x: self.norm(x) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(x)) + self.skip(x)
        return y


def held_by_a_slice() -> nn.Module:
    net = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(3, 3, 1))
    return nn.Sequential(net, Runs(net[:1].forward))


class CallsParent(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent = weakref.ref(parent)

    def forward(self, x: Tensor) -> Tensor:
        parent: Any = self.parent()
        y: Tensor = parent.norm(x)
        return y


class HeldByChild(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.below = CallsParent(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(x)) + self.below(x)
        return y


def held_by_a_hook() -> nn.Module:
    norm, act = nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.2)
    net = nn.Sequential(nn.Sequential(norm, act), nn.Conv2d(3, 3, 1))
    net[1].register_forward_hook(lambda module, args, result: result + act(args[0] - 1))
    return net


class Extractor:
    def __init__(self, net: nn.Module) -> None:
        self.net = net
        net.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        norm: Any = self.net[2]  # type: ignore[index]
        return result + norm(args[0])


def held_by_the_object_of_a_hook() -> nn.Module:
    net = chain()
    Extractor(net)
    return net


# --- Other methods ------------------------------------------------------------------------------------------


class TwoNames(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.norm

    def features(self, x: Tensor) -> Any:
        return self.first(x)


class Listed(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.stages = [self.pad, self.conv, self.norm]

    def features(self, x: Tensor) -> Any:
        for stage in self.stages:
            x = stage(x)
        return x


class Named(Layers):
    taps = ("pad", "conv", "norm")

    def features(self, x: Tensor) -> Any:
        for tap in self.taps:
            x = getattr(self, tap)(x)
        return x


class Iterated(Layers):
    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def features(self, x: Tensor) -> Any:
        for layer in itertools.islice(self, 3):
            x = layer(x)
        return x


def norm_of(net: Any, x: Tensor) -> Any:
    return net.norm(x)


class PassedOn(Layers):
    def features(self, x: Tensor) -> Any:
        return norm_of(self, x)


class Hooked(Layers):
    def features(self, x: Tensor) -> Any:
        seen: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, args, result: seen.append(result))
            for layer in self.children()
        ]
        self(x)
        for hook in hooks:
            hook.remove()
        return seen


class Cached(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.x = torch.linspace(-1, 1, 192).view(1, 3, 8, 8)

    @functools.cached_property
    def normed(self) -> Any:
        return self.norm(self.x)

    def features(self, x: Tensor) -> Any:
        return self.normed


class BoundToInstance(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.features = types.MethodType(lambda self, x: self.norm(x), self)


class Rewired(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.lite, self.last = nn.Identity(), self.act

    def features(self, x: Tensor) -> Any:
        self.last = getattr(self, "li" + "te")
        return self(x)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.norm(x))


class RemovesLayer(Layers):
    def features(self, x: Tensor) -> Any:
        self.act = nn.Identity()  # type: ignore[assignment]
        return self(x)


class FindsByMethod(nn.Module):
    """Has a method that finds the layers through another method."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Layers()

    def layers(self) -> list[nn.Module]:
        return [layer for path, layer in self.named_modules() if "." in path]

    def features(self, x: Tensor) -> Any:
        return [layer(x) for layer in self.layers()]

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class Walker(nn.Module):
    def go(self, net: Any, x: Tensor) -> Any:
        return net.norm(x)


class PassesToSibling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.walker = Layers(), Walker()

    def features(self, x: Tensor) -> Any:
        return self.walker.go(self.inner, x)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


class HiddenBlock(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Sequential(self.norm)]

    def features(self, x: Tensor) -> Any:
        return self.blocks[0](x)


class Delegating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Layers()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def features(self, x: Tensor) -> Any:
        return self.norm(x)

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


# --- Branches that treat a symbol as another type -----------------------------------------------------------


class OnSet(Layers):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.mode in {"taps", "both"}:
            return y
        return self.act(y)


class OnText(Layers):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return y if f"{self.mode}" == "taps" else self.act(y)


class OnDtype(Layers):
    def forward(self, x: Tensor) -> Any:
        wide = x.dtype in {torch.float64}
        y = self.norm(x)
        return y if wide else self.act(y)


class Logger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mode, self.seen = "", list[Tensor]()

    def log(self, y: Tensor) -> None:
        if self.mode:
            self.seen.append(y)


class InChildMethod(Layers):
    """Calls a method of a child that has the same name as a method of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = Logger()

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        self.logger.log(y)
        return [self.act(y), *self.logger.seen]

    def features(self, x: Tensor) -> Any:
        self.logger.mode = "z"
        return self(x)


class OnChildAttribute(Layers):
    """Branches on an attribute of a child that has the same name as an attribute of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.child.data = False  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.child.data:
            return y
        return self.act(y)

    def features(self, x: Tensor) -> Any:
        self.child.data = True  # type: ignore[assignment]
        return self(x)


TAPS = False


class InGetattribute(Layers):
    def __getattribute__(self, name: str) -> Any:
        return TAPS if name == "flag" else super().__getattribute__(name)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.flag:
            return y
        return self.act(y)


def with_global_flag(net: Any, x: Tensor) -> Any:
    global TAPS
    TAPS = True
    try:
        return net(x)
    finally:
        TAPS = False


# --- Checks of a layer's class ------------------------------------------------------------------------------


def kind_of(layer: nn.Module) -> str:
    return type(layer).__name__


class ChecksRepr(Layers):
    def features(self, x: Tensor) -> Any:
        return x * sum(f"{layer}".startswith("InstanceNorm2d") for layer in self.children())


class Handles(nn.Module):
    """Holds one layer through a proxy, and another as an attribute of a function."""

    def __init__(self, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()

        def run(x: Tensor) -> Any:
            return run.layer(x)  # type: ignore[attr-defined]

        run.layer = act  # type: ignore[attr-defined]
        self.run, self.proxies = run, (weakref.proxy(norm),)

    def forward(self, x: Tensor) -> Any:
        return self.run(self.proxies[0](x) - 1)


class HeldByHandles(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.handles = Handles(self.norm, self.act)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(x)) + self.handles(x)


class ChecksByFunction(Layers):
    def features(self, x: Tensor) -> Any:
        return x * sum(kind_of(layer) == "InstanceNorm2d" for layer in self.children())


ODD: list[tuple[Callable[[], nn.Module], Drive]] = [
    (one_norm_for_two_activations, forward), (OneConvolutionForTwoPads, with_flag),
    (NoGradientForTheActivation, forward), (NoGradientForThePad, forward), (HeldByLambda, forward),
    (held_by_a_slice, forward), (HeldByChild, forward), (held_by_a_hook, forward),
    (held_by_the_object_of_a_hook, forward), (TwoNames, features), (Listed, features), (Named, features),
    (Iterated, features), (PassedOn, features), (Hooked, features), (Cached, features),
    (BoundToInstance, features), (Rewired, features), (RemovesLayer, features),
    (FindsByMethod, features), (PassesToSibling, features), (HiddenBlock, features),
    (OnChildAttribute, features), (Delegating, features), (ChecksByFunction, features),
    (ChecksRepr, features), (HeldByHandles, forward), (OnSet, with_flag),
    (OnText, with_flag), (InChildMethod, features),
    (InGetattribute, with_global_flag), (OnDtype, lambda net, x: net.double()(x.double())),
]  # fmt: skip


@pytest.mark.parametrize(("build", "drive"), ODD, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("training", [True, False])
def test_odd_network_gives_the_same_results(
    build: Callable[[], nn.Module], drive: Drive, training: bool
) -> None:
    runs = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        net = randomised(build()).train(training)
        if accelerated:
            accelerate(net)
            accelerate(net).undo()
        runs.append(results(net, drive))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_fuses_all_pairs_of_a_shared_layer() -> None:
    assert len(accelerate(one_norm_for_two_activations()).replaced) == 1
    assert len(accelerate(OneConvolutionForTwoPads()).replaced) == 2


# --- Only classes are changed -------------------------------------------------------------------------------


class Effects(Layers):
    """A network whose forward has many side effects. Tracing must not cause them."""

    def forward(self, x: Tensor) -> Any:
        self.eval()
        self.requires_grad_(False)
        self.register_buffer("last", x.detach().mean())
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return self.act(self.norm(x))


class RecordsCalls(nn.ReLU):
    seen: list[Any] = []  # noqa: RUF012

    def __call__(self, x: Tensor) -> Any:
        self.seen.append(x)
        return super().__call__(x)


class CallsRecorder(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.recorder = RecordsCalls()

    def forward(self, x: Tensor) -> Any:
        return self.recorder(self.norm(x))


def test_tracing_has_no_side_effects() -> None:
    torch.manual_seed(7)
    net = Effects()
    state = torch.get_rng_state()
    accelerate(net)
    assert net.norm.training
    assert net.norm.weight.requires_grad
    assert "last" not in net.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    accelerate(CallsRecorder())
    assert not RecordsCalls.seen


class Asserts(Layers):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        assert self.flag, y
        return self.act(y)


class Cyclic(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.child.parent = self


def test_accepts_assertions_and_cycles() -> None:
    assert accelerate(Asserts()).replaced[0].why == "Asserts.forward may branch on `assert self.flag, y`"
    assert len(accelerate(Cyclic()).replaced) == 1


def test_skips_layers_with_custom_attributes() -> None:
    """User attributes with the same names as ours are not overwritten, and unusual paddings are skipped."""
    norm, conv = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 3)
    norm.act, conv.border = "user", "value"  # type: ignore[assignment]
    pads = [PAD(1), PAD(1), PAD(0)]
    pads[0].padding, pads[1].padding = [1, 1, 1, 1], 1  # type: ignore[assignment]
    report = accelerate(nn.ModuleList([nn.Sequential(pads[0], conv, norm, nn.ReLU()), *pads[1:]]))
    assert not report.replaced
    assert {entry.why for entry in report.left} == {
        "its padding is not the same on all sides: [1, 1, 1, 1]",
        "it already has an attribute named act",
        "its padding is not the same on all sides: 1",
        "its padding is zero",
    }
    assert (norm.act, conv.border) == ("user", "value")
