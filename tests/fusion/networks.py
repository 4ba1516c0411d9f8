"""Helpers for the tests of fusion: comparisons of two networks, and small networks for each kind of forward.

With torch's own operators, the comparison is bit for bit. It detects modules that were fused wrongly, however
small the effect is.
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
    """Give the one-dimensional parameters of a network random values.

    With weight 1 and bias 0, a wrong channel would go unnoticed.
    """
    for p in net.parameters():
        if p.dim() == 1:
            nn.init.normal_(p, 0.5)
    return net


def gradients(net: nn.Module, x: Tensor, dy: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input ("input") and of every parameter that has one.

    The gradient of the output is ``dy``, or random numbers.
    """
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) if dy is None else dy
    y.backward(dy.to(y))
    grads = {"input": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    return y.detach(), {name: d.clone() for name, d in grads.items() if d is not None}


def assert_identical(net: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Assert that two networks give the same outputs and gradients bit for bit, in training and eval mode."""
    for training in (True, False):
        (ours, d_ours), (expected, d_expected) = (gradients(n.train(training), x) for n in (net, plain))
        assert torch.equal(ours, expected)
        assert d_ours.keys() == d_expected.keys()
        assert all(torch.equal(d_ours[name], d_expected[name]) for name in d_expected)


def check_parity(nets: tuple[nn.Module, nn.Module], x: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Check the output and every gradient of the first of ``nets`` by the parity rule.

    They are compared with those of the second network, in the same dtype and in float64.
    """
    exact = copy.deepcopy(nets[1]).double()
    (y, d), (y_plain, d_plain), (y_exact, d_exact) = (
        gradients(n, t) for n, t in zip((*nets, exact), (x, x, x.double()), strict=True)
    )
    assert_parity("output", y, y_plain, y_exact, dtype)
    assert d.keys() == d_plain.keys() == d_exact.keys()
    for name in d:
        assert_parity(name, d[name], d_plain[name], d_exact[name], dtype)


def replaced_kinds(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.what for entry in report.replaced}


def reasons_by_path(report: Accelerated) -> dict[str, str]:
    return {entry.path: entry.why for entry in (*report.replaced, *report.left)}


class Norms(nn.Module):
    """Base class with layers that the subclasses below use in different ways."""

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
    """Calls one ReLU twice, each time directly after a norm."""

    fused = ("norm", "norm2")

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.act(self.norm2(self.conv2(x)))


class SlicedSequential(Norms):
    """Slices a Sequential during the forward, so only the layers of the slice are modules of the network."""

    fused = ("layers.1",)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1:3](self.layers[0](x))


class IteratedSequential(Norms):
    fused = ("layers.1",)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class UnrelatedBranch(Norms):
    """A branch that does not affect the fused layers: norm and act are called either way."""

    fused = ("norm",)

    def forward(self, x: Tensor) -> Tensor:
        if self.switch and not self.training:
            x = self.conv2(x)
        return self.act(self.norm(x)) * self.steps


class ForwardInHelperMethods(Norms):
    """A forward that calls layers of the base class, and a private method that nothing else calls."""

    fused = ("norm",)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class SequentialWithSkip(nn.Sequential):
    """A Sequential whose forward extends torch's."""

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


class ReluAlsoAfterConvolution(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.act(self.conv(x))))


class ReluAlsoAfterTappedNorm(Norms):
    """One of two norms cannot be fused, which excludes the shared ReLU and therefore the other norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(x))
        tapped = self.norm2(x)
        return self.act(tapped) + tapped


class TappedNorm(Norms):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.act(y) + y


class TappedSequential(Norms):
    """Runs a whole Sequential, and also uses the output of one of its layers, like a feature extractor."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.layers[1](self.layers[0](x))


class GrandchildCalledDirectly(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.layers[2](x)


class SumInBetween(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)) + x)


class FunctionalActivation(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), 0.1)


class TwoActivationsOfOneNorm(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.leaky(self.norm(self.act(self.norm(x))))


class BranchesOnData(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[1](self.norm(x))
        if x.mean() > -100:
            return self.layers[2](x) * 2 + x
        return self.layers[2](self.act(x))


class BranchesOnTraining(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.training else x


class BranchesOnSwitch(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if self.switch else x


class BranchesOnArgument(Norms):
    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        x = self.norm(x)
        return x if features else self.act(x)


class BranchesOnOptionalTensor(Norms):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        return self.act(x) if skip is None else self.act(x + skip)


class BranchesOnPythonRandom(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if random.random() < 2 else x


class BranchesOnTorchRandom(Norms):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.act(x) if torch.rand(()) < 2 else x


class CallsForwardDirectly(Norms):
    """Calls the forward of a layer directly. A trace shows the functions that it calls, but not the layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) + self.act.forward(x)


class InPlaceBetweenPadAndConvolution(Norms):
    """Changes x in place between the pad and the convolution.

    The pad has already copied x at that point, but a fused pad would not have.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach() * 1
        padded = self.pad(x)
        y = x.mul_(2)
        return self.bare(padded) + y


class TappedPad(Norms):
    def forward(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        return self.bare(padded) + padded[:, :, 1:-1, 1:-1]


class ConvolutionAlsoWithoutPad(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.bare(self.pad(x)))


class PadAlsoBeforeStride(Norms):
    def forward(self, x: Tensor) -> Tensor:
        return self.bare2(self.pad(self.bare(self.pad(x))))


class TwoPadSizes(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ReflectionPad2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.wide(self.bare(self.pad(x))))


PAD = nn.ReflectionPad2d


def small(impl: str = "auto") -> tuple[nn.Sequential, nn.Sequential]:
    """Return a norm, a LeakyReLU, a pad and a convolution as a Sequential: an accelerated and a plain one."""
    torch.manual_seed(0)
    layers = [nn.InstanceNorm2d(3, affine=True), nn.LeakyReLU(0.1), PAD(1), nn.Conv2d(3, 4, 3)]
    net = nn.Sequential(*layers)
    plain = copy.deepcopy(randomised(net))
    accelerate(net, impl)
    return net, plain
