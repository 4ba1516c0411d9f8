"""How several pictures go through several networks: in one pass each, and through two networks at once, where
that changes nothing.

*Batching*: instance norm looks at one picture at a time, so that a network makes of [a, b] what it makes of a
and of b. *Pairing*: two networks of one architecture run as one, pictures of the one after pictures of the
other, each layer with a list of two weights. Both are exact. Where they are not, or where somebody looks at
single networks (hooks, members of their own), calls are made one by one, and why is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.nn.chains import Chain, ResidualBlock, UnetBlock, run_chains, run_levels
from fastcyclegan.nn.layer_checks import untouched
from fastcyclegan.nn.layers import FloatTanh
from fastcyclegan.nn.networks import OURS, PixelDiscriminator, UnetGenerator, computed_by, is_ours

_NORMS = (nn.InstanceNorm2d, reference.InstanceNorm2d)
_SINGLE = (
    *(*OURS, Chain, ResidualBlock, UnetBlock, *_NORMS, FloatTanh, nn.Tanh, nn.Sequential, nn.Identity),
    *(
        nn.Conv2d,
        nn.ConvTranspose2d,
        reference.ResizeConv2d,
        nn.ReflectionPad2d,
        nn.ReLU,
        nn.LeakyReLU,
        nn.Dropout,
    ),
    *(reference.Generator, reference.UnetGenerator, reference.Discriminator, reference.PixelDiscriminator),
    *(reference.ResidualBlock, reference.UnetBlock, nn.ReplicationPad2d),
)
"""Modules that are known to treat every picture by itself."""
_SETTINGS = (
    *(
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "output_padding",
        "groups",
        "padding_mode",
        "in_channels",
        "out_channels",
    ),
    *("eps", "affine", "negative_slope", "p", "inplace", "outermost", "impl", "recompute", "training"),
)


def why_not_batched(name: str, net: nn.Module) -> str:
    """Return "" where ``net`` makes the same of pictures together as of each by itself and nobody listens,
    else why not.
    """
    for path, module in net.named_modules():
        where = ".".join(filter(None, (name, path)))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{where} is a batch norm, which looks at all pictures of a batch"
        if not untouched(module, type(module)):
            return f"{where} has a hook, or a forward of its own"
        if not (type(module) in _SINGLE or is_ours(module)) or getattr(module, "track_running_stats", False):
            return f"{where} is a {type(module).__name__}, which may look at all pictures of a batch"
    return ""


def why_not_paired(nets: Mapping[str, nn.Module]) -> str:
    """Return "" where ``nets`` can run as one, else why not. What may be batched is asked elsewhere."""
    names, first = list(nets), next(iter(nets.values()))
    if not is_ours(first):
        return f"{names[0]} is a {type(first).__name__}"
    modules = {name: list(net.named_modules()) for name, net in nets.items()}
    for name in names[1:]:
        if len(modules[name]) != len(modules[names[0]]):
            return f"{names[0]} and {name} are of different architectures"
        for (path, one), (_, other) in zip(modules[names[0]], modules[name], strict=True):
            if type(one) is not type(other) or _settings(one) != _settings(other):
                return f"{names[0]} and {name} differ in {path or 'themselves'} ({type(other).__name__})"
    for _, module in modules[names[0]]:
        if isinstance(module, _NORMS) and module.affine:
            return "their norms have weights"
    parameters = [
        [(p.shape, p.dtype, p.device, p.stride(), p.requires_grad) for p in net.parameters()]
        for net in nets.values()
    ]
    if any(mine != parameters[0] for mine in parameters[1:]):
        return f"{' and '.join(names)} have weights of different shapes or layouts, or others that are frozen"
    return ""


def _settings(module: nn.Module) -> tuple[Any, ...]:
    return tuple(getattr(module, setting, None) for setting in _SETTINGS)


def run_paired(nets: Sequence[nn.Module], x: Tensor, impl: Literal["triton", "reference"]) -> Tensor:
    """Return what P networks that can go together make of x [N, C, H, W], N / P pictures for each, in their
    order.
    """
    if isinstance(nets[0], UnetGenerator):
        return run_levels(tuple(net.model for net in nets), x, None, False, impl)
    chain = "net" if isinstance(nets[0], PixelDiscriminator) else "model"
    return run_chains([getattr(net, chain) for net in nets], x, impl=impl)


def _joined(xs: Sequence[Tensor]) -> Tensor:
    return xs[0] if len(xs) == 1 else torch.cat(list(xs))


def _columns(inputs: Mapping[str, Sequence[Tensor]], y: Tensor) -> dict[str, list[Tensor]]:
    """Return each network's pictures of y, which holds those of all in the order of ``inputs``."""
    parts = iter(y.chunk(sum(map(len, inputs.values()))))
    return {name: [next(parts) for _ in given] for name, given in inputs.items()}


class Passes:
    """The networks of a recipe, and how they are called. ``runs``: what to call for each by itself (it may be
    compiled).

    ``batching`` and ``pairing`` allow what they name; ``singly`` has networks that look at one picture at a
    time called with one picture at a time. ``say`` hears, once, why something does not happen where it was
    to.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        runs: Mapping[str, nn.Module] | None = None,
        *,
        batching: bool = False,
        pairing: bool = False,
        singly: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.nets, self.runs = nets, nets if runs is None else runs
        self.batching, self.pairing, self.singly, self.say = batching, pairing, singly, say
        self._said: set[str] = set()

    def __getitem__(self, name: str) -> nn.Module:
        """Return network ``name``, to be called by itself."""
        return self.runs[name]

    def __call__(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Return what each network, by name, makes of each of its pictures [N, C, H, W]: as many for each
        network.
        """
        together = {name: self._batches(name, given) for name, given in inputs.items()}
        pair = self._pair(inputs) if self.pairing and len(inputs) > 1 else None
        if pair is not None and all(together.values()):
            return _columns(inputs, pair(_joined([x for given in inputs.values() for x in given])))
        if pair is not None:
            # Not all pictures at once, but each network's first, then each one's second.
            rows = [pair(_joined(xs)).chunk(len(xs)) for xs in zip(*inputs.values(), strict=True)]
            return {name: [row[n] for row in rows] for n, name in enumerate(inputs)}
        return {name: self._single(name, given, together[name]) for name, given in inputs.items()}

    def _single(self, name: str, given: Sequence[Tensor], together: bool) -> list[Tensor]:
        if together:
            return list(self.call(name, _joined(given)).chunk(len(given)))
        return [self.call(name, x) for x in given]

    def call(self, name: str, x: Tensor) -> Tensor:
        """Return what network ``name`` makes of x [N, C, H, W], by itself."""
        if self.singly and x.shape[0] > 1 and not why_not_batched(name, self.nets[name]):
            return torch.cat([self.runs[name](one) for one in x.split(1)])
        y: Tensor = self.runs[name](x)
        return y

    def in_any_order(self, names: Sequence[str]) -> bool:
        """Whether it does not matter in what order and company pictures go through these networks; why it
        does is said once.
        """
        reason = next(filter(None, (why_not_batched(name, self.nets[name]) for name in names)), "")
        if reason and (self.batching or self.pairing):
            self._say_once(f"neither batched nor paired: {reason}")
        return not reason

    def _batches(self, name: str, given: Sequence[Tensor]) -> bool:
        """Whether one network's pictures go together."""
        if len(given) == 1 or not self.batching:
            return len(given) == 1
        reason = why_not_batched(name, self.nets[name])
        if not reason and any(x.shape != given[0].shape for x in given[1:]):
            reason = f"{name} gets pictures of different sizes"
        if reason:
            self._say_once(f"not batched: {reason}")
        return not reason

    def _pair(self, inputs: Mapping[str, Sequence[Tensor]]) -> Callable[[Tensor], Tensor] | None:
        """Return what runs the networks as one if they may go together, else None."""
        nets = {name: self.nets[name] for name in inputs}
        reasons = (*(why_not_batched(name, net) for name, net in nets.items()), why_not_paired(nets))
        reason = next(filter(None, reasons), "")
        if not reason and any(
            x.shape != xs[0].shape for xs in zip(*inputs.values(), strict=True) for x in xs[1:]
        ):
            reason = f"{' and '.join(inputs)} get pictures of different sizes"
        if reason:
            self._say_once(f"not paired: {reason}")
            return None
        impl: Any = "triton" if computed_by(next(iter(nets.values()))) == "triton" else "reference"
        return lambda x: run_paired(list(nets.values()), x, impl)

    def _say_once(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            self.say(reason)
