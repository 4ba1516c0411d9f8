"""Which modules of a network the kernels can compute, which two of them as one, and why not the others."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastcyclegan.fusion.call_order import CallSites
from fastcyclegan.fusion.fused_modules import (
    FusedInstanceNorm1d,
    FusedInstanceNorm2d,
    FusedInstanceNorm3d,
    FusedLeakyReLU,
    FusedReflectionPad2d,
    FusedReLU,
    ReflectConv2d,
)
from fastcyclegan.nn.layer_checks import activation, untouched

NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm1d: FusedInstanceNorm1d,
    nn.InstanceNorm2d: FusedInstanceNorm2d,
    nn.InstanceNorm3d: FusedInstanceNorm3d,
}
FUSED_AWAY: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU: FusedReLU,
    nn.LeakyReLU: FusedLeakyReLU,
    nn.ReflectionPad2d: FusedReflectionPad2d,
}
Reasons = dict[nn.Module, str]
"""Modules, each with why it does not fit, or "" if it does."""


# --- One by one ---------------------------------------------------------------------------------------------


def why_not_plain(module: nn.Module, *kinds: type[nn.Module]) -> str:
    """Return "" for a module that is exactly one of ``kinds`` and that nobody listens to, else why it is
    not."""
    if isinstance(module, (*NORMS.values(), ReflectConv2d)):
        return "accelerated already"
    if untouched(module, *kinds):
        return ""
    if is_parametrized(module):
        return "it has a parametrization"
    if type(module) not in kinds:
        if "Lazy" in type(module).__name__:
            return "it is lazy: run the network once before"
        return "it is a subclass of torch's"
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    return "it has hooks"


def _attributes(module: nn.Module) -> set[str]:
    return {*vars(module), *module._modules, *module._parameters, *module._buffers}


def why_not_norm(norm: Any) -> str:
    if why := why_not_plain(norm, *NORMS):
        return why
    if taken := {"act", "slope", "impl", "inplace"} & _attributes(norm):
        return f"it has an attribute {min(taken)} of its own"
    if norm.track_running_stats:
        return "it keeps running statistics"
    return ""


def why_not_pad(pad: Any) -> str:
    if why := why_not_plain(pad, nn.ReflectionPad2d):
        return why
    sides = pad.padding
    if isinstance(sides, tuple) and set(sides) <= {0}:
        return "it pads nothing"
    if not isinstance(sides, tuple) or len(sides) != 4 or len(set(sides)) > 1 or sides[0] < 0:
        return f"its padding is not the same on all sides: {pad.padding}"
    return ""


def _why_not_conv(conv: Any) -> str:
    """Return why the kernels do not compute ``conv``, its padding aside."""
    if why := why_not_plain(conv, nn.Conv2d):
        return why
    if taken := {"border", "impl"} & _attributes(conv):
        return f"it has an attribute {min(taken)} of its own"
    k = conv.kernel_size[0]
    for name, value in {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "kernel_size": (k, k)}.items():
        if getattr(conv, name) != value:
            return f"its {name} is {getattr(conv, name)}"
    if k % 2 == 0:
        return f"its kernel_size is even: {conv.kernel_size}"
    return ""


def why_not_bare_conv(conv: Any) -> str:
    """Return why the kernels do not compute ``conv`` on what a pad has bordered."""
    if why := _why_not_conv(conv):
        return why
    if conv.padding not in ((0, 0), "valid"):
        return f"it pads itself, by {conv.padding}"
    return ""


def why_not_reflecting(conv: Any) -> str:
    """Return why the kernels do not compute ``conv``, which reflects by itself."""
    if why := _why_not_conv(conv):
        return why
    if len(set(conv._reversed_padding_repeated_twice)) != 1:
        return f"its padding is not the same on all sides: {conv.padding}"
    return ""


# --- Two as one ---------------------------------------------------------------------------------------------


def _likeness(module: nn.Module | None) -> object:
    """Return what a pair's operator takes from ``module``: one operator serves all calls, so there it must be
    the same.
    """
    if isinstance(module, nn.ReflectionPad2d):
        return module.padding
    if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
        return activation(module), module.inplace
    return None


def why_alone(sites: CallSites, firsts: Reasons, seconds: Reasons) -> Reasons:
    """Return why each module is no half of a pair: "" where in all calls of it, and of its partners, a second
    comes right after a first.

    ``firsts`` and ``seconds``: all there are, with the reasons that each has by itself.
    """
    why, partners = firsts | seconds, defaultdict(list)
    for call in sites.calls:
        if call.module in firsts:
            partners[call.module].append(call.after)
            if call.after is None and not why[call.module]:
                why[call.module] = call.fate
        elif call.module in seconds:
            partners[call.module].append(call.before)
    for module, reason in why.items():
        if not reason:
            why[module] = _why_unknown(module, sites, bool(partners[module]))

    def drops_out(module: nn.Module) -> str:
        side, others = ("after", seconds) if module in firsts else ("before", firsts)
        reason = ""
        for partner in partners[module]:
            if partner is None:
                reason = f"something else comes {side} it"
            elif partner not in others:
                reason = f"{type(partner).__name__} comes {side} it"
            elif why[partner]:
                reason = f"the {type(partner).__name__} {side} it stays: {why[partner]}"
        if not reason and len({_likeness(partner) for partner in partners[module]}) > 1:
            reason = f"what comes {side} it differs from call to call"
        return reason

    def one_drops_out() -> bool:
        for module, reason in why.items():
            if not reason:
                why[module] = drops_out(module)
                if why[module]:
                    return True
        return False

    # One that drops out may take its partners with it.
    while one_drops_out():
        pass
    return why


def _why_unknown(module: nn.Module, sites: CallSites, is_called: bool) -> str:
    """Return why nothing is known of the calls of ``module``, "" where all are."""
    if why := sites.untouchable.get(module, ""):
        return why
    if why := sites.unseen.get(module, ""):
        return why
    if not is_called:
        return "it is never called"
    return ""
