"""What the tests of fusion share: how two networks are compared, and small networks whose own code decides
what may be fused.

What runs in torch's own operators is held to the bit: two modules that became one wrongly show there,
whatever the tolerance.
"""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import Accelerated, accelerate
from fastcyclegan.testing import assert_parity


def randomised(net: nn.Module) -> nn.Module:
    """Give one-dimensional parameters random values: with weight 1 and bias 0 a wrong channel would not be
    seen.
    """
    for p in net.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 0.5)
    return net


def gradients(net: nn.Module, x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input ("input") and of every parameter that has one, for
    ``dy`` or random numbers.
    """
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) if dy is None else dy
    y.backward(dy.to(y))
    found = {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    return y.detach(), {name: d.clone() for name, d in found.items() if d is not None}


def same(net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Raise AssertionError unless both have the same outputs and gradients, bit for bit, in training and in
    evaluation.
    """
    for training in (True, False):
        (ours, d_ours), (theirs, d_theirs) = (gradients(n.train(training), x) for n in (net, plain))
        assert torch.equal(ours, theirs)
        assert d_ours.keys() == d_theirs.keys()
        assert all(torch.equal(d_ours[name], d_theirs[name]) for name in d_theirs)


def held(nets: tuple[nn.Module, nn.Module], x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Hold the first of ``nets`` by the rule to the second in the same dtype, and to it in float64: output
    and every gradient.
    """
    exact = copy.deepcopy(nets[1]).double()
    (y, d), (y_plain, d_plain), (y_exact, d_exact) = (
        gradients(n, t) for n, t in zip((*nets, exact), (x, x, x.double()), strict=True)
    )
    assert_parity("output", y, y_plain, y_exact, dtype)
    assert d.keys() == d_plain.keys() == d_exact.keys()
    for name in d:
        assert_parity(name, d[name], d_plain[name], d_exact[name], dtype)


def whats(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.what for entry in report.replaced}


def whys(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.why for entry in (*report.replaced, *report.left)}


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


class ABranchOverOtherThings(Norms):
    """Both its ways call the pair."""

    fused = ("norm",)

    def forward(self, x: Tensor) -> Tensor:
        if self.switch and not self.training:
            x = self.conv2(x)
        return self.act(self.norm(x)) * self.steps


class AForwardInPieces(Norms):
    """Of private methods, which nobody calls from outside, and of a class above."""

    fused = ("norm",)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class ASequentialWithASkip(nn.Sequential):
    """Its forward is torch's, and some more."""

    fused = ("1",)
    switch = True

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3, affine=True), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        return x + y


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


PAD = nn.ReflectionPad2d


def small(impl: str = "auto") -> tuple[nn.Sequential, nn.Sequential]:
    """A norm with a LeakyReLU, and a convolution with its pad; accelerated and plain."""
    torch.manual_seed(0)
    layers = [nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.1), PAD(1), nn.Conv2d(3, 4, 3)]
    net = nn.Sequential(*layers)
    plain = copy.deepcopy(randomised(net))
    accelerate(net, impl)
    return net, plain
