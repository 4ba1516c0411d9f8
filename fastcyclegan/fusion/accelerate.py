"""``accelerate(module)``: any network's instance norms and reflection-padded convolutions by the kernels, in
place, and back by ``undo()``.

Replaced are InstanceNorm1d, 2d and 3d, with the ReLU or LeakyReLU that follows, and ReflectionPad2d with the
Conv2d that follows (or padding_mode="reflect"). Two modules become one only where every call of either,
anywhere in the network, is one after the other with nobody else between: ``call_sites`` finds the calls,
``why_alone`` decides. Then the activation or the pad becomes the identity, of a subclass of what it was. It
is a module's class that changes, and nothing else: parameters, keys, hooks and whoever holds the module stay.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from fastcyclegan.fusion.call_order import call_sites
from fastcyclegan.fusion.eligibility import (
    FUSED_AWAY,
    NORMS,
    Reasons,
    why_alone,
    why_not_bare_conv,
    why_not_norm,
    why_not_pad,
    why_not_plain,
    why_not_reflecting,
)
from fastcyclegan.fusion.example_check import copy_that_runs, difference
from fastcyclegan.fusion.fused_modules import ReflectConv2d
from fastcyclegan.kernels.dispatch import check_impl, resolve_impl
from fastcyclegan.nn.layer_checks import activation

# --- The report ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A module by its ``path`` ("" is the network itself), ``what`` it was, and ``why`` it was left, or
    replaced alone.
    """

    path: str
    what: str
    why: str = ""


@dataclass(frozen=True)
class _Change:
    module: nn.Module
    path: str
    plain: type[nn.Module]
    fused: type[nn.Module]
    added: dict[str, Any]


@dataclass(frozen=True)
class Accelerated:
    """What ``accelerate`` did: ``replaced`` and ``left``, in the network's order, and a ``note`` where no
    kernel serves it. ``str()`` is a table; ``undo()`` takes it back.
    """

    replaced: tuple[Entry, ...]
    left: tuple[Entry, ...]
    note: str = ""
    _changes: list[_Change] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        replaced, left = _count(self.replaced), _count(self.left)
        head = f"accelerate: {replaced} replaced, {left} left as it is"
        lines = [head, *_lines("replaced", self.replaced), *_lines("left", self.left)]
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)

    def undo(self) -> None:
        """Make the modules what they were, with parameters and modes as they are now. A second call does
        nothing.

        Raises RuntimeError, and changes nothing, where a module's class is no longer what ``accelerate`` made
        it (by a parametrization).
        """
        for change in self._changes:
            if type(change.module) is not change.fused:
                path, now = change.path, type(change.module).__name__
                if not path:
                    path = "the module"
                raise RuntimeError(f"undo: {path} was made {change.fused.__name__} and is {now} now")
        for change in self._changes:
            change.module.__class__ = change.plain
            for name in change.added:
                del change.module.__dict__[name]
        self._changes.clear()


def _count(entries: tuple[Entry, ...]) -> str:
    if not entries:
        return "nothing"
    return str(len(entries))


def _lines(title: str, entries: tuple[Entry, ...]) -> Iterator[str]:
    """Yield a line for all entries of one kind and reason: how many, which and why."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in entries:
        path = entry.path
        if not path:
            path = "the module itself"
        alike[entry.what, entry.why].append(path)
    for (what, why), paths in alike.items():
        line = f"  {title:<8}{len(paths):>4}  {what}: {', '.join(paths[:3])}"
        if len(paths) > 3:
            line += f" and {len(paths) - 3} more"
        if why and title == "replaced":
            line += f" (alone: {why})"
        elif why:
            line += f" ({why})"
        yield line


# --- The public function ------------------------------------------------------------------------------------


def accelerate(module: nn.Module, impl: str = "auto", example: Any = None) -> Accelerated:
    """Replace, in place, what the kernels can compute inside ``module``, itself included, and return what was
    replaced and what not.

    It stays the same function with the same state_dict, parameters and modes, and may be trained, saved,
    copied, compiled, cast and moved. ``impl``: "triton", "reference" (torch's own operators), or "auto":
    Triton on an NVIDIA GPU for fp32, bf16 and fp16, elsewhere torch's own, to the bit what was computed
    before. By the kernels less is kept for the backward, and two things are other: a norm returns the layout
    of its input (torch's returns NCHW memory), and there is no double backward.

    An activation or a pad is fused where traces of the forwards inside ``module`` show that nobody else sees
    what comes between. The layers of a forward that branches are not fused with each other; an ``if`` on a
    plain attribute is no obstacle, both its ways are traced. Assumed is that nobody calls layers from outside
    (``net.m[:4](x)``); before hooks are registered or layers changed, call ``undo()``. What has hooks, a
    parametrization, running statistics or a class of its own stays, and so does a convolution with a stride,
    a dilation, groups or an even kernel.

    ``example``, an input (or a tuple of arguments, or a dict of them), is run before and after, on copies: if
    the outputs differ by more than rounding, all is undone, with a warning.

    Raises TypeError for what is not a module, and ValueError for an unknown ``impl`` or an example that the
    module cannot run.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"accelerate: module must be a torch.nn.Module, got {type(module).__name__}")
    check_impl(impl)
    if example is None:
        return _accelerated(module, impl)
    plain = copy_that_runs(module, example)
    report = _accelerated(module, impl)
    wrong = difference(module, plain, example)
    if not wrong:
        return report
    warnings.warn(f"accelerate: undone: {wrong}", stacklevel=2)
    report.undo()
    undone = [Entry(entry.path, entry.what, f"undone: {wrong}") for entry in report.replaced]
    return Accelerated((), (*undone, *report.left), report.note)


def _accelerated(module: nn.Module, impl: str) -> Accelerated:
    work = _Work({inner: path for path, inner in module.named_modules()}, impl)
    norms, activations, pads, convs = _kinds(work.names)
    asked_for: list[nn.Module] = []
    if norms:
        asked_for += [*norms, *activations]
    if pads or any(map(_reflects, convs)):
        asked_for += [*pads, *convs]
    sites = call_sites(module, asked_for)
    alone = why_alone(sites, norms, activations) | why_alone(sites, pads, convs)
    partners: dict[nn.Module, list[Any]] = defaultdict(list)
    for call in sites.calls:
        partners[call.module].append(call.after if call.module in norms else call.before)
    for inner in work.names:
        if norms.get(inner):
            work.leave(inner, norms[inner])
        elif inner in sites.untouchable and (inner in norms or inner in pads or _reflects(inner)):
            work.leave(inner, sites.untouchable[inner])
        elif inner in norms:
            work.norm(inner, [] if alone[inner] else partners[inner], alone[inner])
        elif inner in pads and alone[inner]:
            work.leave(inner, alone[inner])
        elif inner in convs:
            work.conv(inner, [] if alone[inner] else partners[inner])
    for scripted in _scripted(module):
        work.leave(scripted, "it is scripted")
    return work.done()


def _scripted(module: nn.Module) -> list[nn.Module]:
    """Return the scripted modules inside ``module``, itself included, but none that is in another."""
    found = [inner for inner in module.modules() if isinstance(inner, torch.jit.ScriptModule)]
    inside = {inner for scripted in found for inner in set(scripted.modules()) - {scripted}}
    return [scripted for scripted in found if scripted not in inside]


def _kinds(modules: Iterable[nn.Module]) -> tuple[Reasons, Reasons, Reasons, Reasons]:
    """Return the norms, activations, pads and convolutions of ``modules``, each with why it does not fit."""
    norms: Reasons = {}
    activations: Reasons = {}
    pads: Reasons = {}
    convs: Reasons = {}
    for module in modules:
        if isinstance(module, tuple(FUSED_AWAY.values())):
            continue
        if isinstance(module, _InstanceNorm):
            norms[module] = why_not_norm(module)
        elif isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            activations[module] = why_not_plain(module, nn.ReLU, nn.LeakyReLU)
        elif isinstance(module, nn.ReflectionPad2d):
            pads[module] = why_not_pad(module)
        elif isinstance(module, nn.Conv2d):
            convs[module] = why_not_bare_conv(module)
    return norms, activations, pads, convs


def _reflects(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.padding_mode == "reflect"


class _Work:
    """Gathers the entries of the report and the changes. ``names``: of all modules, in order."""

    def __init__(self, names: dict[nn.Module, str], impl: str) -> None:
        self.names, self._impl = names, impl
        self._replaced: list[Entry] = []
        self._left: list[Entry] = []
        self._changes: dict[nn.Module, _Change] = {}

    def _change(self, module: nn.Module, fused: type[nn.Module], **added: Any) -> None:
        self._changes[module] = _Change(module, self.names[module], type(module), fused, added)

    def leave(self, module: nn.Module, why: str) -> None:
        self._left.append(Entry(self.names[module], type(module).__name__, why))

    def norm(self, norm: nn.Module, activations: list[Any], alone: str) -> None:
        """Replace a norm, with the like ``activations`` that follow it, or ``alone``, for that reason."""
        what, act, inplace = type(norm).__name__, ("none", 0.0), False
        for following in activations:
            what = f"{type(norm).__name__} + {type(following).__name__}"
            found = activation(following)
            if found is not None:
                act = found
            inplace = following.inplace
            self._change(following, FUSED_AWAY[type(following)])
        self._change(norm, NORMS[type(norm)], act=act[0], slope=act[1], impl=self._impl, inplace=inplace)
        self._replaced.append(Entry(self.names[norm], what, alone))

    def conv(self, conv: Any, pads: list[Any]) -> None:
        """Replace a convolution with the like ``pads`` before it, or one that reflects by itself."""
        what, border = "ReflectionPad2d + Conv2d", 0
        if isinstance(conv, ReflectConv2d):
            self.leave(conv, why_not_reflecting(conv))
            return
        for pad in pads:
            border = pad.padding[0]
            self._change(pad, FUSED_AWAY[type(pad)])
        if not pads and conv.padding_mode == "reflect" and any(conv._reversed_padding_repeated_twice):
            what, border = 'Conv2d(padding_mode="reflect")', conv._reversed_padding_repeated_twice[0]
            if why := why_not_reflecting(conv):
                self.leave(conv, why)
                return
        if border:
            self._change(conv, ReflectConv2d, border=border, impl=self._impl)
            self._replaced.append(Entry(self.names[conv], what))

    def done(self) -> Accelerated:
        """Change the modules, and return what was changed."""
        for change in self._changes.values():
            change.module.__dict__.update(change.added)
            change.module.__class__ = change.fused
        note = ""
        if self._replaced and self._impl == "auto":
            note = _not_served(self.names)
        return Accelerated(tuple(self._replaced), tuple(self._left), note, list(self._changes.values()))


def _not_served(modules: Iterable[nn.Module]) -> str:
    """Return "" where kernels serve the parameters of ``modules``, else which they do not, as a sentence."""
    found = set()
    for module in modules:
        for p in module.parameters(recurse=False):
            if resolve_impl("accelerate", "auto", p) == "reference":
                found.add(f"{p.device.type} in {str(p.dtype).removeprefix('torch.')}")
    if not found:
        return ""
    return f"no kernel serves {' and '.join(sorted(found))}: torch's own operators compute there, as before"
