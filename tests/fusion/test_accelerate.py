"""``accelerate``: three networks of other fields held to float64, and every way that a network's own code can make a fusion wrong.

What runs in torch's own operators is held to the bit: two modules that became one wrongly show there, whatever the tolerance.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from bench.plain_nets import NETS, SMALL_NETS, UNet3d
from fastcyclegan.devtools.dry_run import count
from fastcyclegan.fusion.accelerate import Accelerated, accelerate
from fastcyclegan.fusion.fused_modules import FusedInstanceNorm2d, ReflectConv2d
from fastcyclegan.nn.networks import Generator
from fastcyclegan.testing import assert_parity, tf32


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Functions are compared here, not TF32's roundings, which PyTorch's convolutions and ours have of their own."""
    with tf32(False):
        yield


def randomised(net: nn.Module) -> nn.Module:
    """Give one-dimensional parameters random values: with weight 1 and bias 0 a wrong channel would not be seen."""
    for p in net.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 0.5)
    return net


def gradients(net: nn.Module, x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input ("input") and of every parameter that has one, for ``dy`` or random numbers."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) if dy is None else dy
    y.backward(dy.to(y))
    found = {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    return y.detach(), {name: d.clone() for name, d in found.items() if d is not None}


def same(net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Raise AssertionError unless both have the same outputs and gradients, bit for bit, in training and in evaluation."""
    for training in (True, False):
        (ours, d_ours), (theirs, d_theirs) = (gradients(n.train(training), x) for n in (net, plain))
        assert torch.equal(ours, theirs)
        assert d_ours.keys() == d_theirs.keys()
        assert all(torch.equal(d_ours[name], d_theirs[name]) for name in d_theirs)


def held(nets: tuple[nn.Module, nn.Module], x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Hold the first of ``nets`` by the rule to the second in the same dtype, and to it in float64: output and every gradient."""
    exact = copy.deepcopy(nets[1]).double()
    (y, d), (y_plain, d_plain), (y_exact, d_exact) = (gradients(n, t) for n, t in zip((*nets, exact), (x, x, x.double()), strict=True))
    assert_parity("output", y, y_plain, y_exact, dtype)
    assert d.keys() == d_plain.keys() == d_exact.keys()
    for name in d:
        assert_parity(name, d[name], d_plain[name], d_exact[name], dtype)


def whats(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.what for entry in report.replaced}


def whys(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.why for entry in (*report.replaced, *report.left)}


# --- Three networks of other fields ---------------------------------------------------------------------------------------------------

REPLACED = {
    "3-D U-Net": {"InstanceNorm3d + LeakyReLU": 6},
    # Two convolutions have a stride, and a block ends in a norm alone.
    "style transfer": {"ReflectionPad2d + Conv2d": 6, "InstanceNorm2d + ReLU": 6, "InstanceNorm2d": 1},
    # Two norms end a Sequential, one has a PReLU after it.
    "super-resolution": {'Conv2d(padding_mode="reflect")': 6, "InstanceNorm2d + LeakyReLU": 1, "InstanceNorm2d": 3},
}


@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_networks(name: str, device: str) -> None:
    """Outputs and every gradient by the rule: the kernels, torch's own in the same dtype, and float64."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain, x = randomised(build()).to(device), torch.randn(shape, device=device)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    whole = whats(accelerate(ours, impl="triton"))
    assert {what: list(whole.values()).count(what) for what in set(whole.values())} == REPLACED[name]
    (y, d_ours), (y_plain, d_plain), (y_exact, d_exact) = (gradients(n, t) for n, t in ((ours, x), (plain, x), (exact, x.double())))
    assert_parity("output", y, y_plain, y_exact, torch.float32)
    assert d_ours.keys() == d_plain.keys() == d_exact.keys()
    for key in d_exact:
        # The bias before a norm has no gradient but rounding noise: so both gradients of a convolution are held as one vector.
        weight = key.removesuffix("bias") + "weight"
        both = [key, weight] if key.endswith("bias") and d_exact[weight].dim() > 1 else [key]
        assert_parity(key, *(torch.cat([d[k].flatten() for k in both]) for d in (d_ours, d_plain, d_exact)), torch.float32)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_parity_of_networks_in_bf16(name: str, device: str) -> None:
    """Outputs. Through a whole network in 16 bits gradients are chance, theirs as ours: which side of a ReLU's zero a unit is on. They are
    held layer by layer, below."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    plain, x = randomised(build()).to(device, torch.bfloat16), torch.randn(shape, device=device, dtype=torch.bfloat16)
    ours, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    accelerate(ours, impl="triton")
    with torch.no_grad():
        assert_parity("output", ours(x), plain(x), exact(x.double()), torch.bfloat16)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_state_and_undo_of_networks(name: str) -> None:
    """The same parameters under the same keys in the same order, to the bit the same function on a CPU; and all of it back."""
    torch.manual_seed(0)
    build, shape = SMALL_NETS[name]
    net, x = randomised(build()), torch.randn(shape)
    plain, before = copy.deepcopy(net), dict(net.named_parameters())
    text, modules = repr(net), dict(net.named_modules())
    report = accelerate(net)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert net.state_dict()._metadata == plain.state_dict()._metadata  # type: ignore[attr-defined]
    assert all(p is before[key] for key, p in net.named_parameters())
    same(net, plain, x)
    same(net.double(), plain.double(), x.double())
    plain.load_state_dict(net.state_dict())
    report.undo()
    assert repr(net) == text
    assert dict(net.named_modules()) == modules
    assert [m.__dict__.keys() for m in net.modules()] == [m.__dict__.keys() for m in plain.modules()]
    same(net, plain, x.double())
    # Once undone, a report has nothing to undo: not what another one did.
    again = accelerate(net)
    report.undo()
    assert len(again.replaced) == len(report.replaced)
    assert repr(net) != text


def test_less_is_kept_for_the_backward() -> None:
    """Exact bytes. The U-Net's LeakyReLU works in place: what it would keep is what the next convolution keeps, so there is no less."""
    kept = {}
    for name, (build, shape) in NETS.items():
        net, x = build(), torch.zeros(*shape[:2], *(side // 4 for side in shape[2:]))
        plain = count(net, x).saved_bytes
        accelerate(net, impl="triton")
        kept[name] = count(net, x).saved_bytes / plain
    assert kept["style transfer"] < 0.7
    assert kept["super-resolution"] < 0.63
    assert kept["3-D U-Net"] < 1.001


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_auto_takes_the_kernels_on_a_gpu(layout: torch.memory_format) -> None:
    """In either layout, and the result has the one that torch gives."""
    net = SMALL_NETS["super-resolution"][0]().cuda().to(memory_format=layout)
    x = torch.randn(2, 3, 16, 16, device="cuda").to(memory_format=layout)
    stride = net(x).stride()
    accelerate(net)
    with torch.profiler.profile() as profile:
        assert net(x).stride() == stride
    assert any("fastcyclegan::" in event.key for event in profile.key_averages())


# --- When two may be one --------------------------------------------------------------------------------------------------------------


class Norms(nn.Module):
    """Modules that a forward below may use as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.norm2 = nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm2d(3, affine=True)
        self.act, self.leaky = nn.ReLU(), nn.LeakyReLU(0.1)
        self.pad = nn.ReflectionPad2d(1)
        self.bare, self.bare2 = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2)
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
        self.switch, self.steps = True, 0


class OneReluForTwoNorms(Norms):
    """Every call of the ReLU follows a norm."""

    fused = ("norm", "norm2")

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.act(self.norm2(self.conv2(x)))


class ASliceOfASequential(Norms):
    """Made on the way, it is no module of the network: what it calls is."""

    fused = ("layers.1",)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1:3](self.layers[0](x))


class ASequentialIterated(Norms):
    fused = ("layers.1",)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class AStructureThatIsOptional(Norms):
    """The switch cannot be turned: nothing is there that it would call."""

    fused = ("norm",)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if not self.switch:
            x = self.attention(x)
        x = self.act(self.norm(x))
        return x if skip is None else x + skip


class OnePadForTwoConvolutions(Norms):
    fused = ("bare",)

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.pad(self.bare(self.pad(x))))


class AReluThatAlsoFollowsAConvolution(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.act(self.conv(x))))


class AReluThatAlsoFollowsATappedNorm(Norms):
    """One partner drops out, and takes the ReLU and so the other norm with it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))
        tapped = self.norm2(x)
        return self.act(tapped) + tapped


class ATappedNorm(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.act(y) + y


class ATappedSequential(Norms):
    """As feature extractors do: all of it in one place, a layer's result in another."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.layers[1](self.layers[0](x))


class AGrandchildCalledFromAbove(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.layers[2](x)


class ASumBetween(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + x)


class AFunctionalActivation(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), 0.1)


class OtherActivationsOfOneNorm(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.leaky(self.norm(self.act(self.norm(x))))


class DecidesByData(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[1](self.norm(x))
        if x.mean() > -100:
            return self.layers[2](x) * 2 + x
        return self.layers[2](self.act(x))


class DecidesByTraining(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.training else x


class DecidesByASwitch(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.switch else x


class DecidesByAnArgument(Norms):
    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        x = self.norm(x)
        return x if features else self.act(x)


class DecidesByAnOptionalTensor(Norms):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.act(x) if skip is None else self.act(x + skip)


class DecidesByChance(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if random.random() < 2 else x


class DecidesByTorchsChance(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if torch.rand(()) < 2 else x


class CallsAForward(Norms):
    """A trace sees the functions in it, not the module."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) + self.act.forward(x)


class InPlaceBetweenPadAndConvolution(Norms):
    """The pad has copied x by then; a fused one would not have."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach() * 1
        padded = self.pad(x)
        y = x.mul_(2)
        return self.bare(padded) + y


class ATappedPad(Norms):
    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        return self.bare(padded) + padded[:, :, 1:-1, 1:-1]


class AConvolutionWithoutItsPad(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.bare(self.pad(x)))


class APadForAStrideToo(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.bare2(self.pad(self.bare(self.pad(x))))


class PadsOfTwoSizes(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ReflectionPad2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.wide(self.bare(self.pad(x))))


FUSED = [OneReluForTwoNorms, ASliceOfASequential, ASequentialIterated, AStructureThatIsOptional, OnePadForTwoConvolutions]
TRAPS = [
    AReluThatAlsoFollowsAConvolution, AReluThatAlsoFollowsATappedNorm, ATappedNorm, ATappedSequential, AGrandchildCalledFromAbove,
    ASumBetween, AFunctionalActivation, OtherActivationsOfOneNorm, DecidesByData, DecidesByTraining, DecidesByASwitch, DecidesByAnArgument,
    DecidesByAnOptionalTensor, DecidesByChance, DecidesByTorchsChance, CallsAForward, InPlaceBetweenPadAndConvolution, ATappedPad,
    AConvolutionWithoutItsPad, APadForAStrideToo, PadsOfTwoSizes,
]  # fmt: skip


@pytest.mark.parametrize("kind", [*FUSED, *TRAPS], ids=lambda kind: kind.__name__)
def test_fuses_what_every_call_allows(kind: type[Norms]) -> None:
    """The same function to the bit, in both modes and with the switch turned, and as many fusions as can be."""
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


@pytest.mark.parametrize("kind", [ATappedSequential, AGrandchildCalledFromAbove, DecidesByData], ids=lambda kind: kind.__name__)
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
    assert whys(report)["norm"].startswith("DecidesByData.forward cannot be followed (symbolically traced variables cannot be used")
    report = accelerate(nn.Sequential(DecidesByChance()))
    assert whys(report)["0.norm"] == "DecidesByChance.forward of 0 cannot be followed (it draws random numbers)"
    net = OneReluForTwoNorms()
    net.forward = lambda x: net.norm(x)  # type: ignore[method-assign]
    assert "it is an attribute of the instance" in whys(accelerate(net))["norm"]
    assert whys(accelerate(nn.ModuleList([nn.InstanceNorm2d(3), nn.ReLU()])))["0"] == "it is never called"


# --- What a forward decides by --------------------------------------------------------------------------------------------------------


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
    (ByAConfiguration, having(options={"taps": True}), "decides by more than its switches: self.options['taps']"),
    (ByAText, lambda net, x: net(x, "features"), "decides by more than its switches: mode == 'features'"),
    (ByTwoArguments, lambda net, x: net(x, True, True), "its result leaves ByTwoArguments.forward"),
    (ByGradients, torch.no_grad()(having()), "decides by more than its switches: torch.is_grad_enabled()"),
    (ByAnAttributeThatMayBeNone, having(extra=1.0), "its result goes to add in ByAnAttributeThatMayBeNone.forward"),
    (ByAnIndex, having(mode=0), "decides by more than its switches: [found[1], self.act(found[1])][self.mode]"),
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
    for kind, replaced in ((AsksForReLUs, {"InstanceNorm2d + ReLU", "InstanceNorm2d"}), (AsksForTheClass, set())):
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


# --- What is left, and why ------------------------------------------------------------------------------------------------------------


class MyNorm(nn.InstanceNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class MyRelu(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, args, out: 2 * out)
    return module


def own_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, **options})  # type: ignore[arg-type]


PAD = nn.ReflectionPad2d
LEFT: list[tuple[Callable[[], list[nn.Module]], dict[str, str]]] = [
    (lambda: [nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU()], {"0": "it keeps running statistics"}),
    (lambda: [MyNorm(4), nn.ReLU()], {"0": "it is a subclass of torch's"}),
    (lambda: [hooked(nn.InstanceNorm2d(4)), nn.ReLU()], {"0": "it has hooks"}),
    (lambda: [own_forward(nn.InstanceNorm2d(4)), nn.ReLU()], {"0": "it has a forward of its own"}),
    (lambda: [nn.InstanceNorm2d(4), MyRelu()], {"0": "the MyRelu after it stays: it is a subclass of torch's"}),
    (lambda: [nn.InstanceNorm2d(4), hooked(nn.ReLU())], {"0": "the ReLU after it stays: it has hooks"}),
    (lambda: [nn.InstanceNorm2d(4), nn.PReLU()], {"0": "PReLU comes after it"}),
    (lambda: [nn.InstanceNorm2d(4)], {"0": "its result leaves the Sequential"}),
    (lambda: [PAD(1), conv(stride=2)], {"0": "the Conv2d after it stays: its stride is (2, 2)"}),
    (lambda: [PAD(1), conv(dilation=2)], {"0": "the Conv2d after it stays: its dilation is (2, 2)"}),
    (lambda: [PAD(1), conv(groups=2)], {"0": "the Conv2d after it stays: its groups is 2"}),
    (lambda: [PAD(1), conv(kernel_size=2)], {"0": "the Conv2d after it stays: its kernel_size is even: (2, 2)"}),
    (lambda: [PAD(1), conv(kernel_size=(3, 1))], {"0": "the Conv2d after it stays: its kernel_size is (3, 1)"}),
    (lambda: [PAD(1), conv(padding=1)], {"0": "the Conv2d after it stays: it pads itself, by (1, 1)"}),
    (lambda: [PAD((1, 1, 1, 2)), conv()], {"0": "its padding is not the same on all sides: (1, 1, 1, 2)"}),
    (lambda: [hooked(PAD(1)), conv()], {"0": "it has hooks"}),
    (lambda: [PAD(1), hooked(conv())], {"0": "the Conv2d after it stays: it has hooks"}),
    (lambda: [PAD(1), spectral_norm(conv())], {"0": "the Conv2d after it stays: it has hooks"}),
    (lambda: [PAD(1), parametrizations.weight_norm(conv())], {"0": "the ParametrizedConv2d after it stays: it has a parametrization"}),
    (lambda: [PAD(1), nn.ReLU(), conv()], {"0": "ReLU comes after it"}),
    (lambda: [conv(padding=1, padding_mode="reflect", stride=2)], {"0": "its stride is (2, 2)"}),
    (lambda: [conv(padding=(1, 0), padding_mode="reflect")], {"0": "its padding is not the same on all sides: (1, 0)"}),
    (lambda: [conv(padding=1, padding_mode="circular")], {}),
]


@pytest.mark.parametrize(("build", "reasons"), LEFT, ids=lambda value: next(iter(value.values()), "") if isinstance(value, dict) else "")
def test_what_is_left_and_why(build: Callable[[], list[nn.Module]], reasons: dict[str, str]) -> None:
    """By one reason each, and still the same function to the bit."""
    torch.manual_seed(0)
    net = nn.Sequential(*build())
    torch.manual_seed(0)
    plain = nn.Sequential(*build())
    report = accelerate(net)
    assert whys(report) == reasons
    assert not any("+" in what for what in whats(report).values())
    same(net, plain, torch.randn(2, 4, 6, 7))


def test_lazy_norms_are_left_until_they_know_their_size() -> None:
    net = nn.Sequential(nn.LazyInstanceNorm2d(track_running_stats=False), nn.ReLU())
    assert whys(accelerate(net))["0"] == "it is lazy: run the network once before"
    net(torch.randn(1, 3, 4, 4))
    assert whats(accelerate(net)) == {"0": "InstanceNorm2d + ReLU"}


def test_our_own_networks_are_left() -> None:
    """Their chains fuse more than this."""
    report = accelerate(Generator(ngf=4, n_blocks=1))
    assert not report.replaced
    assert {"it is a subclass of torch's"} == {entry.why for entry in report.left if "Norm" in entry.what}


# --- Replaced modules as torch's ------------------------------------------------------------------------------------------------------


def small(impl: str = "auto") -> tuple[nn.Sequential, nn.Sequential]:
    """A norm with a LeakyReLU, and a convolution with its pad; accelerated and plain."""
    torch.manual_seed(0)
    layers = [nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.1), PAD(1), nn.Conv2d(3, 4, 3)]
    net = nn.Sequential(*layers)
    plain = copy.deepcopy(randomised(net))
    accelerate(net, impl)
    return net, plain


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.InstanceNorm1d, (2, 3, 8)), (nn.InstanceNorm1d, (3, 8)), (nn.InstanceNorm2d, (3, 4, 4)), (nn.InstanceNorm3d, (2, 3, 2, 3, 2))],
    ids=str,
)
def test_norms_of_all_dimensions(kind: type[nn.Module], shape: tuple[int, ...], impl: str, device: str) -> None:
    """Pictures without the dimension N too; a negative slope is not invertible, so the kernels must not need it to be."""
    torch.manual_seed(0)
    plain = nn.Sequential(randomised(kind(3, affine=True, eps=1e-3)), nn.LeakyReLU(-0.5)).to(device)
    net = copy.deepcopy(plain)
    assert whats(accelerate(net, impl)) == {"0": f"{kind.__name__} + LeakyReLU"}
    held((net, plain), torch.randn(shape, device=device))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_wrong_inputs_have_torchs_errors(impl: str, device: str) -> None:
    net, plain = (n.to(device) for n in small(impl))
    wrong = [torch.zeros(3, 4), torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 4)]
    wrong += [torch.zeros(1, 4, 1, 1), torch.zeros(1, 3, 4, 4, dtype=torch.float16)]
    for part in (slice(0, 2), slice(2, 4)):
        for x in wrong:
            found = []
            for n in (plain, net):
                try:
                    found.append(n[part](x.to(device)).shape)
                # Whatever torch raises.
                except Exception as error:
                    found.append((type(error), str(error)))
            assert found[0] == found[1]


def test_an_unaffine_norm_of_other_channels_warns_as_torchs() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(3))
    accelerate(net)
    with pytest.warns(UserWarning, match="does not match num_features"):
        net(torch.randn(1, 2, 4, 4))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_no_picture_at_all(impl: str, device: str) -> None:
    net = small(impl)[0].to(device)
    x = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    net(x).sum().backward()
    assert net(x).shape == (0, 4, 4, 4)
    assert x.grad is not None
    assert all(not p.grad.any() for p in net.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 4, 4), (1, 3, 1, 4), (2, 3, 4, 4)], ids=str)
def test_any_layout_has_the_same_gradient(shape: tuple[int, ...]) -> None:
    """Torch's backward on the CPU misreads the channels_last gradient of one picture (2.13): not ours. Results may be changed in place."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.InstanceNorm2d(3))
    accelerate(net)
    x, dy = torch.randn(shape), torch.randn(shape)
    last = dy.movedim(-3, -1).contiguous().movedim(-1, -3)
    expected = gradients(net, x, dy)[1]["input"]
    for _ in range(2):
        t = x.clone().requires_grad_()
        net(t).mul_(2).backward(last / 2)
        torch.testing.assert_close(t.grad, expected)
        t.grad = None
        net(t).backward(last)
        assert torch.equal(t.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers_in_16_bits(dtype: torch.dtype, device: str) -> None:
    net, plain = (n.to(device, dtype) for n in small("triton"))
    held((net, plain), torch.randn(2, 3, 6, 6, device=device, dtype=dtype), dtype)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_autocast(impl: str, device: str) -> None:
    """Weights in fp32, results in bf16, as torch's."""
    net, plain = (n.to(device) for n in small(impl))
    x = torch.randn(2, 3, 6, 6, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert net(x).dtype == plain(x).dtype == torch.bfloat16
        held((net, plain), x, torch.bfloat16)


def test_frozen_copied_and_pickled(device: str) -> None:
    net = small("triton")[0].to(device)
    x = torch.randn(1, 3, 4, 4, device=device)
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), y)
        assert (type(other[0]), type(other[3])) == (FusedInstanceNorm2d, ReflectConv2d)
    net.requires_grad_(False)
    x.requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert not net.half()(x.detach().half()).isnan().any()


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_compiles_in_one_graph(impl: str, device: str) -> None:
    net = small(impl)[0].to(device)
    x = torch.randn(1, 3, 6, 6, device=device)
    # What is asked is whether it can be traced whole; a backend that makes code would take ten times as long.
    (y, d), (compiled, d_compiled) = gradients(net, x), gradients(torch.compile(net, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(compiled, y)
    for name in d:
        torch.testing.assert_close(d_compiled[name if name == "input" else f"_orig_mod.{name}"], d[name])


@pytest.mark.parametrize(("border", "k"), [(1, 1), (2, 3), (1, 5), (2, 5)])
def test_borders_that_are_not_half_a_kernel(border: int, k: int, device: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(PAD(border), nn.Conv2d(3, 4, k, bias=False)).to(device)
    net = copy.deepcopy(plain)
    assert whats(accelerate(net, "triton")) == {"1": "ReflectionPad2d + Conv2d"}
    held((net, plain), torch.randn(2, 3, 5, 6, device=device))


@pytest.mark.parametrize("padding", [1, "same"])
def test_layouts_are_torchs(padding: int | str, device: str) -> None:
    """A view that follows must find the memory that it finds without ``accelerate``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding, padding_mode="reflect")).to(device)
    x = torch.randn(2, 3, 5, 6, device=device)
    last = x.contiguous(memory_format=torch.channels_last)
    strides = [net(t).stride() for t in (x, last)]
    assert len(accelerate(net, "triton").replaced) == 1
    assert [net(t).stride() for t in (x, last)] == strides
    assert net(x[0]).is_contiguous()
    assert net.to(memory_format=torch.channels_last)(x).is_contiguous(memory_format=torch.channels_last)


def test_where_cudnn_is_faster_the_kernels_write_its_border(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("fastcyclegan.fusion.fused_modules.backend_of", lambda *a: "cudnn")
    net, plain = (n.to(device) for n in small("triton"))
    held((net, plain), torch.randn(1, 3, 6, 6, device=device))


# --- The report -----------------------------------------------------------------------------------------------------------------------


def test_undo_has_the_parameters_and_the_mode_of_now() -> None:
    torch.manual_seed(0)
    net = UNet3d((4, 6))
    report, optimizer = accelerate(net), torch.optim.SGD(net.parameters(), 0.1)
    net(torch.randn(1, 1, 4, 4, 4)).sum().backward()  # type: ignore[union-attr]
    optimizer.step()
    net.double().eval()
    x = torch.randn(1, 1, 4, 4, 4, dtype=torch.float64)
    y, state = net(x), net.state_dict()
    report.undo()
    report.undo()
    assert torch.equal(net(x), y)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())


def test_undo_is_whole_or_not_at_all() -> None:
    """A parametrization has made the convolution another class: its pad alone would come back."""
    torch.manual_seed(0)
    net = nn.Sequential(PAD(1), nn.Conv2d(3, 3, 3))
    report, x = accelerate(net), torch.randn(1, 3, 4, 4)
    parametrizations.weight_norm(net[1])
    y = net(x)
    with pytest.raises(RuntimeError, match="undo: 1 was made ReflectConv2d and is ParametrizedReflectConv2d now"):
        report.undo()
    assert torch.equal(net(x), y)
    nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    report.undo()
    assert [type(layer) for layer in net] == [PAD, nn.Conv2d]


def test_a_second_time_there_is_nothing_to_replace() -> None:
    net, _ = small()
    report = accelerate(net)
    assert not report.replaced
    assert whys(report) == {"0": "accelerated already", "3": "accelerated already"}
    assert str(report).splitlines()[0] == "accelerate: nothing replaced, 2 left as it is"


def test_the_report_is_a_table_of_few_lines() -> None:
    net = SMALL_NETS["style transfer"][0]()
    lines = str(accelerate(net)).splitlines()
    assert lines[0] == "accelerate: 13 replaced, 2 left as it is"
    assert "  replaced   6  InstanceNorm2d + ReLU: in1, in2, in3 and 3 more" in lines
    assert (
        "  left       2  ReflectionPad2d: conv2.reflection_pad, conv3.reflection_pad (the Conv2d after it stays: its stride is (2, 2))"
        in lines
    )
    assert len(lines) == 5


def test_a_module_by_itself() -> None:
    norm = nn.InstanceNorm2d(3)
    report = accelerate(norm)
    assert isinstance(norm, FusedInstanceNorm2d)
    assert "the module itself (alone: it is never called)" in str(report)
    report.undo()
    assert type(norm) is nn.InstanceNorm2d


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"accelerate: module must be a torch\.nn\.Module, got Tensor"):
        accelerate(torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="impl must be auto, triton or reference, got 'cuda'"):
        accelerate(nn.ReLU(), impl="cuda")
