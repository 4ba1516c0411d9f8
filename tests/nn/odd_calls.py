"""What the tests of odd calls share: the subjects, one step of training, and the comparison of its outcome.

An outcome is what a call gave: its tensors by name, or the exception that it raised. The outcome of our
network must be that of the plain network: the same tensors by the parity rule, or an exception as clear as
torch's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan import (
    Discriminator,
    Generator,
    InstanceNormAct,
    PixelDiscriminator,
    UnetGenerator,
    accelerate,
)
from fastcyclegan.kernels import KernelError
from fastcyclegan.testing import assert_parity, is_cancelled_bias
from tests.nn import plain_networks as plain

Outcome = dict[str, Tensor] | Exception
Call = Callable[[nn.Module, Tensor], dict[str, Tensor]]

# What our code raises for arguments that it does not support. Torch's own code raises others.
OURS = (ValueError, TypeError)


@dataclass(frozen=True)
class Subject:
    """A public module and its plain counterpart, and the shape of the images to call them with."""

    ours: Callable[[str], nn.Module]
    plain: Callable[[], nn.Module]
    shape: tuple[int, ...]


def _accelerated(impl: str) -> nn.Module:
    net = plain.layers()
    accelerate(net, impl=impl)
    return net


# Images of 12 pixels or more, because a norm over 2 x 2 pixels can enlarge rounding errors.
SUBJECTS = {
    "generator": Subject(
        lambda impl: Generator(ngf=2, n_blocks=1, impl=impl), plain.generator, (1, 3, 12, 16)
    ),
    "unet": Subject(lambda impl: UnetGenerator(ngf=2, num_downs=5, impl=impl), plain.unet, (1, 3, 64, 64)),
    "patches": Subject(lambda impl: Discriminator(ndf=2, impl=impl), plain.discriminator, (2, 3, 32, 40)),
    "pixels": Subject(lambda impl: PixelDiscriminator(ndf=4, impl=impl), plain.pixels, (2, 3, 8, 9)),
    "norm": Subject(
        lambda impl: InstanceNormAct(3, affine=True, act="leaky_relu", impl=impl),
        lambda: plain.Norm(3),
        (2, 3, 6, 7),
    ),
    "accelerated": Subject(_accelerated, plain.layers, (2, 3, 9, 8)),
}


def trio(name: str, impl: str) -> list[nn.Module]:
    """Return our network of a subject, its plain counterpart, and the latter in float64, of equal weights."""
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    network = subject.plain()
    for p in network.parameters():
        nn.init.normal_(p, 0, 0.2)
    ours = subject.ours(impl)
    ours.load_state_dict(network.state_dict())
    return [ours, network, copy.deepcopy(network).double()]


def images(name: str) -> Tensor:
    """Return the images to call a subject with, in [-1, 1]."""
    return torch.rand(SUBJECTS[name].shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


# --- Calls --------------------------------------------------------------------------------------------------


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def upstream(y: Tensor) -> Tensor:
    """Return a random gradient for y, the same for every dtype."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)


def results(net: nn.Module, y: Tensor, x: Tensor | None = None) -> dict[str, Tensor]:
    """Return y and the gradients of x and of the layers of ``net``.

    The gradients of a layer are one vector, because a bias alone is a sum of few numbers, whose rounding
    error the rule does not limit. Biases that a norm cancels are left out.
    """
    found = {"y": y} if x is None or x.grad is None else {"y": y, "x": x.grad}
    layers: dict[str, list[Tensor]] = {}
    for name, p in net.named_parameters():
        parametrised = "parametrizations" in name
        if p.grad is not None and (parametrised or not is_cancelled_bias(net, name)):
            layer = name.partition(".parametrizations")[0] if parametrised else name.rpartition(".")[0]
            layers.setdefault(layer, []).append(p.grad.flatten())
    return found | {f"layer {name}": torch.cat(parts) for name, parts in layers.items()}


def train(net: nn.Module, x: Any) -> dict[str, Tensor]:
    """Call ``net`` and its backward on x itself, and return ``results``."""
    differentiable = isinstance(x, Tensor) and x.is_floating_point() and not x.is_inference()
    if differentiable and not x.requires_grad:
        x = x.detach().requires_grad_()
    y = net(x)
    if y.requires_grad and y.device.type != "meta":
        y.backward(upstream(y))
    return results(net, y, x if differentiable else None)


def outcome(call: Callable[..., dict[str, Tensor]], *arguments: Any) -> Outcome:
    try:
        return call(*arguments)
    # Torch may raise any kind of error.
    except Exception as error:
        return error


def outcomes(nets: list[nn.Module], call: Call, x: Tensor) -> list[Outcome]:
    """Return the outcome of ``call`` on each network of a trio, with a copy of x in its dtype."""
    inputs = [x.to(next(net.parameters()).dtype, copy=True) for net in nets]
    return [outcome(call, net, own) for net, own in zip(nets, inputs, strict=True)]


# --- Comparison ---------------------------------------------------------------------------------------------


def check(found: list[Outcome], dtype: torch.dtype = torch.float32) -> None:
    """Check our outcome, the first, by those of the plain network in fp32 and in float64."""
    ours, pytorch, truth = found
    if isinstance(pytorch, Exception):
        check_error(ours, pytorch)
        return
    for other in (ours, truth):
        if isinstance(other, Exception):
            raise other
    assert list(ours) == list(pytorch)
    for name, expected in pytorch.items():
        _check_tensor(name, ours[name], expected, truth[name], dtype)


def _check_tensor(name: str, ours: Tensor, pytorch: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    kinds = [(type(t), t.dtype, t.shape, t.device) for t in (ours, pytorch)]
    assert kinds[0] == kinds[1], name
    if ours.device.type == "meta" or not ours.numel():
        return
    finite = pytorch.isfinite()
    assert torch.equal(ours.isfinite(), finite), f"{name}: other elements are finite than PyTorch's"
    excluded = ~(finite & truth.isfinite())
    parts = (t.masked_fill(excluded, 0.0) for t in (ours, pytorch, truth))
    assert_parity(name, *parts, dtype)


def check_error(ours: Outcome, pytorch: Exception) -> None:
    """Check that our exception is of the kind of torch's, or one of our own, and has a message."""
    assert isinstance(ours, Exception), f"computed what PyTorch refuses: {pytorch}"
    # Torch's NotImplementedError of an operator is a RuntimeError of it.
    kind = RuntimeError if isinstance(pytorch, RuntimeError) else type(pytorch)
    assert isinstance(ours, (kind, *OURS)), repr(ours)
    assert not isinstance(ours, KernelError), repr(ours)  # a RuntimeError too
    assert str(ours)
    # An argument is refused when it is given, not by a gradient of the wrong shape.
    assert "GeneratedBackward" not in str(ours), repr(ours)


def check_refused(ours: Outcome, message: str) -> None:
    """Check that our code refuses the call with ``message``, a regular expression."""
    assert isinstance(ours, (*OURS, RuntimeError)), repr(ours)
    assert re.search(message, str(ours)), repr(ours)
