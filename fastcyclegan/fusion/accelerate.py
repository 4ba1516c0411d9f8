"""``accelerate(module)``: let our kernels compute instance norms and reflection-padded convolutions.

It changes any network in place, and ``undo()`` reverts that. InstanceNorm1d, 2d and 3d are replaced together
with the ReLU or LeakyReLU that follows, and ReflectionPad2d together with the Conv2d that follows (or a
Conv2d with padding_mode="reflect"). Two modules are fused only if every call of either one, anywhere in the
network, is directly next to a call of the other, and nothing else uses the value in between. ``call_sites``
finds the calls, and ``why_unfused`` checks this condition. The activation or the pad then becomes the
identity, in a subclass of its former class. Only the classes of modules change: parameters, keys, hooks and
references to the modules stay the same.
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
    why_not_bare_conv,
    why_not_norm,
    why_not_pad,
    why_not_plain,
    why_not_reflecting,
    why_unfused,
)
from fastcyclegan.fusion.example_check import copy_that_runs, difference
from fastcyclegan.fusion.fused_modules import ReflectConv2d
from fastcyclegan.kernels.dispatch import check_impl, resolve_impl
from fastcyclegan.nn.layer_checks import activation

# --- The report ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One module in the report of ``accelerate``.

    ``path`` is the name of the module in the network ("" for the network itself). ``what`` is its former
    class, or both classes of a fused pair ("InstanceNorm2d + ReLU"). ``why`` is the reason why the module was
    skipped, or replaced without a partner.
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
    """The report of ``accelerate``.

    ``replaced`` and ``left`` list the modules that were replaced and those that were skipped, in the
    network's order. ``note`` names the dtypes and devices in the network that no kernel supports. ``str()``
    gives a table, and ``undo()`` reverts the changes.
    """

    replaced: tuple[Entry, ...]
    left: tuple[Entry, ...]
    note: str = ""
    _changes: list[_Change] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        replaced, skipped = _count(self.replaced), _count(self.left)
        head = f"accelerate: {replaced} replaced, {skipped} skipped"
        lines = [head, *_table_lines("replaced", self.replaced), *_table_lines("skipped", self.left)]
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)

    def undo(self) -> None:
        """Restore the original classes of the modules; parameters and modes stay as they are now.

        A second call does nothing. Raises RuntimeError, and changes nothing, if the class of a module is no
        longer the one that ``accelerate`` set (for example because of a parametrization).
        """
        for change in self._changes:
            if type(change.module) is not change.fused:
                path, kind = change.path, type(change.module).__name__
                if not path:
                    path = "the module"
                raise RuntimeError(f"undo: the class of {path} must be {change.fused.__name__}, got {kind}")
        for change in self._changes:
            change.module.__class__ = change.plain
            for name in change.added:
                del change.module.__dict__[name]
        self._changes.clear()


def _count(entries: tuple[Entry, ...]) -> str:
    if not entries:
        return "nothing"
    return str(len(entries))


def _table_lines(title: str, entries: tuple[Entry, ...]) -> Iterator[str]:
    """Yield one line of the report per kind and reason, with the number of modules and their paths."""
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entry in entries:
        path = entry.path
        if not path:
            path = "the module itself"
        alike[entry.what, entry.why].append(path)
    for (kind, reason), paths in alike.items():
        line = f"  {title:<8}{len(paths):>4}  {kind}: {', '.join(paths[:3])}"
        if len(paths) > 3:
            line += f" and {len(paths) - 3} more"
        if reason and title == "replaced":
            line += f" (not fused with an activation: {reason})"
        elif reason:
            line += f" ({reason})"
        yield line


# --- The public function ------------------------------------------------------------------------------------


def accelerate(module: nn.Module, impl: str = "auto", example: Any = None) -> Accelerated:
    """Replace, in place, the layers of ``module`` that our kernels can compute, and return a report.

    ``module`` can itself be such a layer. It still computes the same function with the same state_dict,
    parameters and modes, and can be trained, saved, copied, compiled, cast and moved. ``impl`` is "triton" or
    "cpp" (our kernels for GPUs and CPUs), "reference" (torch's own operators) or "auto": our kernels on an
    NVIDIA GPU for fp32, bf16 and fp16 and on a CPU for fp32 and bf16, and torch's own operators everywhere
    else. With torch's own operators, the results are the same as before, bit for bit. Our kernels round
    differently and keep less for the backward; a norm returns the memory layout of its input (torch's returns
    NCHW memory), and those for GPUs do not support double backward.

    An activation or a pad is fused only if traces of the forwards inside ``module`` show that nothing else
    uses the value in between. The layers of a forward that branches are not fused with each other. An ``if``
    on a plain attribute is allowed, because both branches are traced. Layers must not be called from outside
    (``net.m[:4](x)``). Call ``undo()`` before registering hooks or changing layers. Modules with hooks, a
    parametrization, running statistics or a custom class are skipped, and so are convolutions with a stride,
    a dilation, groups or an even kernel size.

    If ``example`` is given (an input, or a tuple or dict of arguments), copies of the original and of the
    changed module are run on it. If their outputs differ by more than rounding, all changes are undone with a
    warning.

    Raises TypeError if ``module`` is not a module, and ValueError for an unknown ``impl`` or an example that
    the module cannot run.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"accelerate: module must be a torch.nn.Module, got {type(module).__name__}")
    check_impl(impl)
    if example is None:
        return _accelerated(module, impl)
    plain = copy_that_runs(module, example)
    report = _accelerated(module, impl)
    problem = difference(module, plain, example)
    if not problem:
        return report
    warnings.warn(
        f"accelerate: the check with the example failed, so all changes were undone: {problem}", stacklevel=2
    )
    report.undo()
    undone = [Entry(entry.path, entry.what, f"undone: {problem}") for entry in report.replaced]
    return Accelerated((), (*undone, *report.left), report.note)


def _accelerated(module: nn.Module, impl: str) -> Accelerated:
    plan = _Plan({inner: path for path, inner in module.named_modules()}, impl)
    norms, activations, pads, convs = _candidates(plan.names)
    watched: list[nn.Module] = []
    if norms:
        watched += [*norms, *activations]
    if pads or any(map(_reflects, convs)):
        watched += [*pads, *convs]
    sites = call_sites(module, watched)
    unfused = why_unfused(sites, norms, activations) | why_unfused(sites, pads, convs)
    partners: dict[nn.Module, list[Any]] = defaultdict(list)
    for call in sites.calls:
        partners[call.module].append(call.after if call.module in norms else call.before)
    for inner in plan.names:
        if norms.get(inner):
            plan.skip(inner, norms[inner])
        elif inner in sites.untouchable and (inner in norms or inner in pads or _reflects(inner)):
            plan.skip(inner, sites.untouchable[inner])
        elif inner in norms:
            plan.replace_norm(inner, [] if unfused[inner] else partners[inner], unfused[inner])
        elif inner in pads and unfused[inner]:
            plan.skip(inner, unfused[inner])
        elif inner in convs:
            plan.replace_conv(inner, [] if unfused[inner] else partners[inner])
    for scripted in _scripted(module):
        plan.skip(scripted, "it is a scripted module")
    return plan.apply()


def _scripted(module: nn.Module) -> list[nn.Module]:
    """Return the outermost scripted modules of ``module``, which may be ``module`` itself."""
    all_scripted = [inner for inner in module.modules() if isinstance(inner, torch.jit.ScriptModule)]
    nested = {inner for scripted in all_scripted for inner in set(scripted.modules()) - {scripted}}
    return [scripted for scripted in all_scripted if scripted not in nested]


def _candidates(modules: Iterable[nn.Module]) -> tuple[Reasons, Reasons, Reasons, Reasons]:
    """Return the norms, activations, pads and convolutions among ``modules``.

    Each module is mapped to the reason why it is unsuitable, or to "" if it is suitable.
    """
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


class _Plan:
    """Collects the planned changes and the entries of the report.

    ``names`` maps all modules of the network, in order, to their paths.
    """

    def __init__(self, names: dict[nn.Module, str], impl: str) -> None:
        self.names, self._impl = names, impl
        self._replaced: list[Entry] = []
        self._skipped: list[Entry] = []
        self._changes: dict[nn.Module, _Change] = {}

    def _change(self, module: nn.Module, fused: type[nn.Module], **added: Any) -> None:
        self._changes[module] = _Change(module, self.names[module], type(module), fused, added)

    def skip(self, module: nn.Module, reason: str) -> None:
        self._skipped.append(Entry(self.names[module], type(module).__name__, reason))

    def replace_norm(self, norm: nn.Module, activations: list[Any], reason: str) -> None:
        """Fuse a norm with the ``activations`` that follow its calls, which have equal settings.

        If there are none, replace the norm by itself; ``reason`` is why it has no partner.
        """
        kind, act, inplace = type(norm).__name__, ("none", 0.0), False
        for following in activations:
            kind = f"{type(norm).__name__} + {type(following).__name__}"
            settings = activation(following)
            if settings is not None:
                act = settings
            inplace = following.inplace
            self._change(following, FUSED_AWAY[type(following)])
        self._change(norm, NORMS[type(norm)], act=act[0], slope=act[1], impl=self._impl, inplace=inplace)
        self._replaced.append(Entry(self.names[norm], kind, reason))

    def replace_conv(self, conv: Any, pads: list[Any]) -> None:
        """Fuse a convolution with the ``pads`` that precede its calls, which have equal settings.

        If there are none, replace the convolution only if its own padding mode is "reflect".
        """
        kind, border = "ReflectionPad2d + Conv2d", 0
        if isinstance(conv, ReflectConv2d):
            self.skip(conv, why_not_reflecting(conv))
            return
        for pad in pads:
            border = pad.padding[0]
            self._change(pad, FUSED_AWAY[type(pad)])
        if not pads and conv.padding_mode == "reflect" and any(conv._reversed_padding_repeated_twice):
            kind, border = 'Conv2d(padding_mode="reflect")', conv._reversed_padding_repeated_twice[0]
            if reason := why_not_reflecting(conv):
                self.skip(conv, reason)
                return
        if border:
            self._change(conv, ReflectConv2d, border=border, impl=self._impl)
            self._replaced.append(Entry(self.names[conv], kind))

    def apply(self) -> Accelerated:
        """Change the classes of the modules and return the report."""
        for change in self._changes.values():
            change.module.__dict__.update(change.added)
            change.module.__class__ = change.fused
        note = ""
        if self._replaced and self._impl == "auto":
            note = _unsupported_note(self.names)
        return Accelerated(tuple(self._replaced), tuple(self._skipped), note, list(self._changes.values()))


def _unsupported_note(modules: Iterable[nn.Module]) -> str:
    """Return a sentence that names the dtypes and devices in ``modules`` that no kernel supports, or ""."""
    unsupported = set()
    for module in modules:
        for p in module.parameters(recurse=False):
            if resolve_impl("accelerate", "auto", p) == "reference":
                unsupported.add(f"{str(p.dtype).removeprefix('torch.')} on {p.device.type}")
    if not unsupported:
        return ""
    return (
        f"no kernel supports {' and '.join(sorted(unsupported))}: torch's own operators are used, as before"
    )
