"""Run several images through a network in one call, and two networks as one, without changing any result.

*Batching*: instance norm normalises each image separately, so the outputs of a network for [a, b] are those
for a and for b. *Pairing*: two networks of one architecture run as one. The images of the second network
follow those of the first, and each layer takes a list of two weights. Both techniques are exact, and are used
only where they are. If they would change a result, or if a network has hooks or custom modules, the networks
are called one by one, and the reason is logged once.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.kernels.dispatch import Impl
from fastcyclegan.nn.chains import Chain, ResidualBlock, UnetBlock, run_chains, run_levels
from fastcyclegan.nn.layer_checks import untouched
from fastcyclegan.nn.layers import FloatTanh
from fastcyclegan.nn.networks import OURS, PixelDiscriminator, UnetGenerator, computed_by, is_ours

_NORMS = (nn.InstanceNorm2d, reference.InstanceNorm2d)
_LAYERS: tuple[type[nn.Module], ...] = (
    *(nn.Conv2d, nn.ConvTranspose2d, reference.ResizeConv2d, nn.ReflectionPad2d, nn.ReplicationPad2d),
    *(reference.AntialiasedDownsample, reference.AntialiasedUpsample),
    *(*_NORMS, nn.ReLU, nn.LeakyReLU, nn.Tanh, FloatTanh, nn.Dropout, nn.Identity),
    *(nn.Linear, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.Upsample, nn.AvgPool2d, nn.MaxPool2d),
    *(nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.ZeroPad2d, nn.GroupNorm, nn.LayerNorm),
)
_BLOCKS: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, Chain, ResidualBlock, UnetBlock, reference.ResidualBlock, reference.UnetBlock),
    *(reference.Generator, reference.UnetGenerator, reference.Discriminator, reference.PixelDiscriminator),
)
_SINGLE = (*OURS, *_BLOCKS, *_LAYERS)
"""Modules that are known to process each image separately."""
_SIZES = "kernel_size stride padding dilation output_padding groups padding_mode in_channels out_channels"
_OPTIONS = "eps affine negative_slope p inplace outermost impl recompute training"
_SETTINGS = (*_SIZES.split(), *_OPTIONS.split())
"""Module attributes that must be equal in networks that run as one."""


def why_not_batched(name: str, net: nn.Module) -> str:
    """Return why ``net`` cannot take a batch of images in one call, or "" if it can.

    Batching is possible if the network processes each image separately and has no hooks. A class of others
    says so of itself, apart from its layers, with the attribute ``images_are_separate = True``.
    """
    for path, module in net.named_modules():
        label = f"{name}.{path}" if path else name
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"{label} is a batch norm, which computes its statistics over the whole batch"
        if not untouched(module, type(module)):
            return f"{label} has a hook or a custom forward method"
        declared = getattr(type(module), "images_are_separate", False) is True
        known = declared or type(module) in _SINGLE or is_ours(module)
        if not known or getattr(module, "track_running_stats", False):
            return f"{label} is of type {type(module).__name__}, which may mix the images of a batch"
    return ""


def why_not_paired(nets: Mapping[str, nn.Module]) -> str:
    """Return why ``nets`` cannot run as one, or "" if they can.

    This does not check whether their images can be batched (see ``why_not_batched``).
    """
    (name, net), *others = nets.items()
    if not is_ours(net):
        return f"{name} is of type {type(net).__name__}, which cannot be paired"
    for other_name, other in others:
        difference = _difference(net, other)
        if difference:
            return f"{name} and {other_name} {difference}"
    for module in net.modules():
        if isinstance(module, _NORMS) and module.affine:
            return "networks with affine norm layers cannot run as one"
    if any(_weight_layout(other) != _weight_layout(net) for _, other in others):
        return (
            f"{' and '.join(nets)} have weights of different shapes or layouts, or different frozen weights"
        )
    return ""


def _difference(net: nn.Module, other: nn.Module) -> str:
    """Return how two networks differ apart from their weights, or "" if they do not."""
    modules, others = list(net.named_modules()), list(other.named_modules())
    if len(modules) != len(others):
        return "have different architectures"
    for (path, one), (_, two) in zip(modules, others, strict=True):
        if type(one) is not type(two) or _settings(one) != _settings(two):
            place = path if path else "top-level settings"
            return f"differ in {place} ({type(two).__name__})"
    return ""


def _settings(module: nn.Module) -> list[Any]:
    return [getattr(module, setting, None) for setting in _SETTINGS]


def _weight_layout(net: nn.Module) -> list[Any]:
    """Return the properties of each weight that must be equal in networks that run as one."""
    weights = (*net.parameters(), *net.buffers())
    return [(p.shape, p.dtype, p.device, p.stride(), p.requires_grad) for p in weights]


def why_not_together(nets: Mapping[str, nn.Module]) -> str:
    """Return why ``nets`` cannot run as one with their images batched, or "" if they can."""
    reason = first_reason(why_not_batched(name, net) for name, net in nets.items())
    if reason:
        return reason
    return why_not_paired(nets)


def first_reason(reasons: Iterable[str]) -> str:
    """Return the first nonempty string of ``reasons``, or "" if there is none."""
    for reason in reasons:
        if reason:
            return reason
    return ""


# --- Running networks ---------------------------------------------------------------------------------------

Run = Callable[[Tensor], Tensor]


def _impl(net: nn.Module) -> Impl:
    impl = computed_by(net)
    if impl == "triton":
        return "triton"
    return "cpp" if impl == "cpp" else "reference"


def run_paired(nets: Sequence[nn.Module], x: Tensor, impl: Impl) -> Tensor:
    """Run P networks of one architecture as one and return their outputs.

    x [N, C, H, W] has N / P images for each network, in the order of ``nets``.
    """
    if isinstance(nets[0], UnetGenerator):
        return run_levels(tuple(net.model for net in nets), x, None, False, impl)
    if isinstance(nets[0], PixelDiscriminator):
        chains: list[Any] = [net.net for net in nets]
    else:
        chains = [net.model for net in nets]
    return run_chains(chains, x, impl=impl)


def _joined(xs: Sequence[Tensor]) -> Tensor:
    if len(xs) == 1:
        return xs[0]
    return torch.cat(list(xs))


def _of_one_size(images: Sequence[Tensor]) -> bool:
    return all(x.shape == images[0].shape for x in images)


def _all_at_once(inputs: Mapping[str, Sequence[Tensor]], run_pair: Run) -> dict[str, list[Tensor]]:
    """Run all images through all networks in one call, with the images of each network adjacent."""
    x = _joined(list(itertools.chain.from_iterable(inputs.values())))
    count = sum(map(len, inputs.values()))
    results = iter(run_pair(x).chunk(count))
    return {name: list(itertools.islice(results, len(images))) for name, images in inputs.items()}


def _one_image_of_each(inputs: Mapping[str, Sequence[Tensor]], run_pair: Run) -> dict[str, list[Tensor]]:
    """Run the first image of every network in one call, then the second of every network, and so on."""
    results: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for images in zip(*inputs.values(), strict=True):
        for name, y in zip(inputs, run_pair(_joined(images)).chunk(len(images)), strict=True):
            results[name].append(y)
    return results


class NetworkCalls:
    """Calls the networks of a recipe, batched and paired where that is permitted and possible.

    ``called`` maps the name of each network to the callable that runs it by itself, possibly compiled
    (default: ``nets``). ``batching`` and ``pairing`` permit these techniques. If ``singly`` is true, networks
    that process each image separately are called with one image at a time. ``log`` receives one line for each
    reason why a permitted technique is not used.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        called: Mapping[str, nn.Module] | None = None,
        *,
        batching: bool = False,
        pairing: bool = False,
        singly: bool = False,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.nets, self.called, self.log = nets, nets if called is None else called, log
        self.batching, self.pairing, self.singly = batching, pairing, singly
        self._logged: set[str] = set()

    def __getitem__(self, name: str) -> nn.Module:
        """Return the callable that runs network ``name`` by itself."""
        return self.called[name]

    def __call__(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Run each network, by name, on its images [N, C, H, W] and return its outputs.

        All networks must be given the same number of images.
        """
        together = {name: self._batches(name, images) for name, images in inputs.items()}
        run_pair = None
        if self.pairing and len(inputs) > 1:
            run_pair = self._pair(inputs)
        if run_pair is None:
            return {name: self._single(name, images, together[name]) for name, images in inputs.items()}
        if all(together.values()):
            return _all_at_once(inputs, run_pair)
        return _one_image_of_each(inputs, run_pair)

    def _single(self, name: str, images: Sequence[Tensor], together: bool) -> list[Tensor]:
        if together:
            return list(self.call(name, _joined(images)).chunk(len(images)))
        return [self.call(name, x) for x in images]

    def call(self, name: str, x: Tensor) -> Tensor:
        """Run network ``name`` by itself on x [N, C, H, W] and return its output."""
        net = self.called[name]
        if self.singly and x.shape[0] > 1 and not why_not_batched(name, self.nets[name]):
            return torch.cat([net(image) for image in x.split(1)])
        y: Tensor = net(x)
        return y

    def in_any_order(self, names: Sequence[str]) -> bool:
        """Return whether images can go through these networks in any order and in any batches.

        If they cannot, the reason is logged once.
        """
        reason = first_reason(why_not_batched(name, self.nets[name]) for name in names)
        if reason and (self.batching or self.pairing):
            self._log_once(f"neither batched nor paired: {reason}")
        return not reason

    def _batches(self, name: str, images: Sequence[Tensor]) -> bool:
        """Return whether to run ``images`` through network ``name`` in one call.

        If batching is permitted but not possible, the reason is logged once.
        """
        if len(images) == 1:
            return True
        if not self.batching:
            return False
        reason = why_not_batched(name, self.nets[name])
        if not reason and not _of_one_size(images):
            reason = f"{name} gets images of different sizes"
        if reason:
            self._log_once(f"not batched: {reason}")
        return not reason

    def _pair(self, inputs: Mapping[str, Sequence[Tensor]]) -> Run | None:
        """Return a function that runs the networks as one, or None if they must run separately."""
        nets = {name: self.nets[name] for name in inputs}
        reason = why_not_together(nets)
        if not reason and not all(map(_of_one_size, zip(*inputs.values(), strict=True))):
            reason = f"{' and '.join(inputs)} get images of different sizes"
        if reason:
            self._log_once(f"not paired: {reason}")
            return None
        pair = list(nets.values())
        return functools.partial(run_paired, pair, impl=_impl(pair[0]))

    def _log_once(self, reason: str) -> None:
        if reason not in self._logged:
            self._logged.add(reason)
            self.log(reason)
