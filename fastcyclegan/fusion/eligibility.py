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
        return (
            "it is lazy: run the network once before"
            if "Lazy" in type(module).__name__
            else "it is a subclass of torch's"
        )
    return "it has a forward of its own" if "forward" in module.__dict__ else "it has hooks"


def why_not_norm(norm: Any) -> str:
    return why_not_plain(norm, *NORMS) or ("it keeps running statistics" if norm.track_running_stats else "")


def why_not_pad(pad: Any) -> str:
    if why := why_not_plain(pad, nn.ReflectionPad2d):
        return why
    return (
        ""
        if len(set(pad.padding)) == 1 and pad.padding[0] > 0
        else f"its padding is not the same on all sides: {pad.padding}"
    )


def _why_not_conv(conv: Any) -> str:
    """Return why the kernels do not compute ``conv``, its padding aside."""
    if why := why_not_plain(conv, nn.Conv2d):
        return why
    k = conv.kernel_size[0]
    for name, value in {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "kernel_size": (k, k)}.items():
        if getattr(conv, name) != value:
            return f"its {name} is {getattr(conv, name)}"
    return "" if k % 2 else f"its kernel_size is even: {conv.kernel_size}"


def why_not_bare_conv(conv: Any) -> str:
    """Return why the kernels do not compute ``conv`` on what a pad has bordered."""
    if why := _why_not_conv(conv):
        return why
    return "" if conv.padding in ((0, 0), "valid") else f"it pads itself, by {conv.padding}"


def why_not_reflecting(conv: Any) -> str:
    """Return why the kernels do not compute ``conv``, which reflects by itself."""
    sides = set(conv._reversed_padding_repeated_twice)
    return _why_not_conv(conv) or (
        "" if len(sides) == 1 else f"its padding is not the same on all sides: {conv.padding}"
    )


# --- Two as one ---------------------------------------------------------------------------------------------


def _likeness(module: nn.Module | None) -> object:
    """Return what a pair's operator takes from ``module``: one operator serves all calls, so there it must be
    the same.
    """
    if isinstance(module, nn.ReflectionPad2d):
        return module.padding
    return (activation(module), module.inplace) if isinstance(module, (nn.ReLU, nn.LeakyReLU)) else None


def why_alone(sites: CallSites, firsts: Reasons, seconds: Reasons) -> Reasons:
    """Return why each module is no half of a pair: "" where in all calls of it, and of its partners, a second
    comes right after a first.

    ``firsts`` and ``seconds``: all there are, with the reasons that each has by itself.
    """
    why, partners = firsts | seconds, defaultdict(list)
    for call in sites.calls:
        if call.module in why:
            partners[call.module].append(call.after if call.module in firsts else call.before)
            if call.module in firsts and call.after is None:
                why[call.module] = why[call.module] or call.fate
    for module in why:
        why[module] = (
            why[module]
            or sites.untouchable.get(module, "")
            or sites.unseen.get(module, "")
            or ("" if partners[module] else "it is never called")
        )

    def dropped(module: nn.Module) -> bool:
        side, others = ("after", seconds) if module in firsts else ("before", firsts)
        for partner in partners[module]:
            if partner is None or partner not in others:
                why[module] = (
                    f"{'something else' if partner is None else type(partner).__name__} comes {side} it"
                )
            elif why[partner]:
                why[module] = f"the {type(partner).__name__} {side} it stays: {why[partner]}"
        if len({_likeness(partner) for partner in partners[module]}) > 1:
            why[module] = why[module] or f"what comes {side} it differs from call to call"
        return bool(why[module])

    # One that drops out may take its partners with it.
    while any(dropped(module) for module in why if not why[module]):
        pass
    return why
