"""Decide which modules the kernels can compute and which can be fused, and give reasons for the others."""

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
"""Modules, each with the reason why it is unsuitable, or "" if it is suitable."""


# --- Single modules -----------------------------------------------------------------------------------------


def why_not_plain(module: nn.Module, *kinds: type[nn.Module]) -> str:
    """Return "" if ``module`` is exactly of one of the classes ``kinds``, unmodified and without hooks.

    Otherwise, return the reason why it is not.
    """
    if isinstance(module, (*NORMS.values(), ReflectConv2d)):
        return "it is already accelerated"
    if untouched(module, *kinds):
        return ""
    if is_parametrized(module):
        return "it has a parametrization"
    if type(module) not in kinds:
        if "Lazy" in type(module).__name__:
            return "it is lazy: run the network once first"
        return "it is a subclass of a torch.nn layer"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return "it has hooks"


def _attributes(module: nn.Module) -> set[str]:
    return {*vars(module), *module._modules, *module._parameters, *module._buffers}


def why_not_norm(norm: Any) -> str:
    if reason := why_not_plain(norm, *NORMS):
        return reason
    if taken := {"act", "slope", "impl", "inplace"} & _attributes(norm):
        return f"it already has an attribute named {min(taken)}"
    if norm.track_running_stats:
        return "it tracks running statistics"
    return ""


def why_not_pad(pad: Any) -> str:
    if reason := why_not_plain(pad, nn.ReflectionPad2d):
        return reason
    sides = pad.padding
    if isinstance(sides, tuple) and set(sides) <= {0}:
        return "its padding is zero"
    if not isinstance(sides, tuple) or len(sides) != 4 or len(set(sides)) > 1 or sides[0] < 0:
        return f"its padding is not the same on all sides: {pad.padding}"
    return ""


def _why_not_conv(conv: Any) -> str:
    """Return why the kernels cannot compute ``conv``, apart from its padding, or "" if they can."""
    if reason := why_not_plain(conv, nn.Conv2d):
        return reason
    if taken := {"border", "impl"} & _attributes(conv):
        return f"it already has an attribute named {min(taken)}"
    k = conv.kernel_size[0]
    for name, value in {"stride": (1, 1), "dilation": (1, 1), "groups": 1, "kernel_size": (k, k)}.items():
        if getattr(conv, name) != value:
            return f"it has {name}={getattr(conv, name)}"
    if k % 2 == 0:
        return f"its kernel_size is even: {conv.kernel_size}"
    return ""


def why_not_bare_conv(conv: Any) -> str:
    """Return why the kernels cannot compute ``conv`` on the output of a pad, or "" if they can."""
    if reason := _why_not_conv(conv):
        return reason
    if conv.padding not in ((0, 0), "valid"):
        return f"it has its own padding: {conv.padding}"
    return ""


def why_not_reflecting(conv: Any) -> str:
    """Return why the kernels cannot compute ``conv``, whose padding_mode is "reflect", or "" if they can."""
    if reason := _why_not_conv(conv):
        return reason
    if len(set(conv._reversed_padding_repeated_twice)) != 1:
        return f"its padding is not the same on all sides: {conv.padding}"
    return ""


# --- Pairs --------------------------------------------------------------------------------------------------


def _fused_settings(module: nn.Module | None) -> object:
    """Return the settings of ``module`` that a fused operator takes over.

    These settings must be equal for all partners of a module, because one operator replaces all its calls.
    """
    if isinstance(module, nn.ReflectionPad2d):
        return module.padding
    if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
        return activation(module), module.inplace
    return None


def why_unfused(sites: CallSites, firsts: Reasons, seconds: Reasons) -> Reasons:
    """Return for each module the reason why it cannot be part of a fused pair, or "" if it can.

    ``firsts`` and ``seconds`` contain all candidates, each with the reason why it is unsuitable by itself, or
    "". A module can be part of a pair if one of ``seconds`` comes directly after one of ``firsts`` in all its
    calls, and in all calls of its partners.
    """
    reasons, partners = firsts | seconds, defaultdict(list)
    for call in sites.calls:
        if call.module in firsts:
            partners[call.module].append(call.after)
            if call.after is None and not reasons[call.module]:
                reasons[call.module] = call.output_use
        elif call.module in seconds:
            partners[call.module].append(call.before)
    for module, reason in reasons.items():
        if not reason:
            reasons[module] = _why_not_traced(module, sites, bool(partners[module]))

    def why_excluded(module: nn.Module) -> str:
        side, others = ("after", seconds) if module in firsts else ("before", firsts)
        reason = ""
        for partner in partners[module]:
            if partner is None:
                reason = f"in one of its calls, no layer comes directly {side} it"
            elif partner not in others:
                reason = f"{type(partner).__name__} comes {side} it"
            elif reasons[partner]:
                reason = f"the {type(partner).__name__} {side} it cannot be fused: {reasons[partner]}"
        if not reason and len({_fused_settings(partner) for partner in partners[module]}) > 1:
            reason = f"the layer {side} it differs from call to call"
        return reason

    def exclude_one() -> bool:
        for module, reason in reasons.items():
            if not reason:
                reasons[module] = why_excluded(module)
                if reasons[module]:
                    return True
        return False

    # Excluding a module may exclude its partners as well.
    while exclude_one():
        pass
    return reasons


def _why_not_traced(module: nn.Module, sites: CallSites, is_called: bool) -> str:
    """Return why the calls of ``module`` are not all known, or "" if they are."""
    if reason := sites.untouchable.get(module, ""):
        return reason
    if reason := sites.maybe_called.get(module, ""):
        return reason
    if not is_called:
        return "no call to it was found"
    return ""
