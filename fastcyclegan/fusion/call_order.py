"""Trace all forwards of a network to find out which module is called on the output of which other module.

All calls on every path of every forward count. Modules that may be called by another method, or by a forward
that cannot be followed, are recorded separately. Calls from outside the network are not detected.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fastcyclegan.errors import one_line
from fastcyclegan.fusion.class_code import (
    NOT_USER_CODE,
    attributes_written_by,
    calls_variables,
    methods_of,
    methods_run_by,
    names_read_by,
    passes_on_layers,
    reachable,
)
from fastcyclegan.fusion.forward_paths import BranchesError, trace_paths

# Modules of torch that wrap another module, and call it but nothing inside it.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "OptimizedModule"}
_IGNORED = {*dir(nn.Module), "extra_repr"} - {"__call__", "forward"}
_CLASS_CHECKS = {"type", "__class__", "_get_name", "repr", "hasattr"}
# Code that uses one of these names may call any layer.
_DYNAMIC = {"getattr", "setattr", "delattr", "apply", "add_module", "_modules", "__dict__"}
_DYNAMIC |= {"register_module", "register_forward_hook", "register_forward_pre_hook"}
# Code that uses one of these may find a layer by iterating over all of them.
_ITERATING = {"children", "modules", "named_children", "named_modules"}


@dataclass(frozen=True)
class Call:
    """One call of ``module``, and the calls directly before and after it.

    ``before`` is the module whose call comes directly before, if only this call uses its output. ``after`` is
    the module whose call comes directly after, if only that call uses the output of this one. ``output_use``
    describes how the output of this call is used.
    """

    module: nn.Module
    before: nn.Module | None
    after: nn.Module | None
    output_use: str


@dataclass
class CallSites:
    """The ``calls`` that the traces show, and the modules that other code may call or inspect.

    ``maybe_called`` are modules that may be called by code that cannot be followed, and ``untouchable`` are
    modules that must keep their exact class, each with the reason.
    """

    calls: list[Call] = field(default_factory=list)
    maybe_called: dict[nn.Module, str] = field(default_factory=dict)
    untouchable: dict[nn.Module, str] = field(default_factory=dict)


def call_sites(root: nn.Module, watched: Iterable[nn.Module]) -> CallSites:
    """Return the calls made by all modules inside ``root`` that contain one of ``watched``.

    Nothing is run and nothing is changed.
    """
    sites, names = CallSites(), {module: path for path, module in root.named_modules()}
    for module in names:
        inside = set(module.modules()) - {module}
        if isinstance(module, torch.jit.ScriptModule):
            continue
        follows = bool(inside.intersection(watched)) and not _is_container(module)
        reason = _add_forward(sites, module, names) if follows else ""
        _add_other_code(sites, module, names, reason, follows and not reason)
    return sites


def _is_container(module: nn.Module) -> bool:
    """Return whether ``module`` only contains other modules, or wraps a single one."""
    is_wrapper = type(module).__name__ in _WRAPPERS and not methods_of(type(module))
    return is_wrapper or _has_forward(module, nn.Module)


def _add_forward(sites: CallSites, module: nn.Module, names: Mapping[nn.Module, str]) -> str:
    """Add the calls of the forward of ``module``; return why it cannot be followed, or "" if it can."""
    caller = f"{type(module).__name__}.forward"
    if names[module]:
        caller += f" of module {names[module]}"
    if _has_forward(module, nn.Sequential):
        caller = names[module] if names[module] else "the Sequential"
    try:
        for graph in trace_paths(module, names):
            sites.calls += _calls_in(graph, names, caller)
    except BranchesError as error:
        return f"{caller} {error}"
    # A forward can raise anything when it is traced.
    except Exception as error:
        return f"{caller} cannot be traced ({one_line(error, 80)})"
    return ""


def _add_other_code(
    sites: CallSites, module: nn.Module, names: Mapping[nn.Module, str], reason: str, followed: bool
) -> None:
    """Add the modules that the other code of ``module`` may call: methods, hooks, functions in attributes.

    ``followed`` is true if its forward was traced. ``reason`` is why the forward cannot be followed, or "".
    """
    kind, methods = type(module), methods_of(type(module))
    of_forward, of_building = methods_run_by("forward", methods), methods_run_by("__init__", methods)
    values = [value for name, value in vars(module).items() if name != "_modules"]
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in NOT_USER_CODE:
            values += [value for name, value in vars(base).items() if name not in _IGNORED]
    held, functions = reachable(values)
    held = [inner for module in held for inner in ([module] if module in names else module.modules())]
    children = {key: child for key, child in module._modules.items() if child is not None}
    if reason:
        for inner in _reached([*held, *children.values()], names_read_by(*of_forward)):
            sites.maybe_called.setdefault(inner, reason)
    for function in functions:
        name, used = function.__name__, names_read_by(function)
        if used & _CLASS_CHECKS:
            check = f"{kind.__name__}.{name} checks the exact class of a layer"
            sites.untouchable.update(dict.fromkeys(module.modules(), check))
        is_private = name == "forward" or name.startswith("_")
        if (followed or reason) and function in of_forward and is_private:
            continue
        if function in methods[name]:
            used = names_read_by(*methods_run_by(name, methods))
        if passes_on_layers(function, children.keys()):
            used |= _DYNAMIC
        elif function not in of_building:
            used |= attributes_written_by(function)
        whole = "__getattr__" in methods or bool(used & _DYNAMIC) or calls_variables(function)
        called = [child for key, child in children.items() if whole or key in used]
        for inner in _reached([*held, *called], used):
            sites.maybe_called.setdefault(inner, f"{kind.__name__}.{name} may call it")


def _reached(called: list[nn.Module], used: set[str]) -> list[nn.Module]:
    """Return the modules ``called``, and those inside them that the same code may call.

    ``used`` are the names that the code mentions.
    """
    for module in called:
        whole = _has_forward(module, nn.Sequential) or _has_forward(module, nn.Module)
        whole = whole or bool(used & (_DYNAMIC | _ITERATING | methods_of(type(module)).keys()))
        for name, child in module._modules.items():
            if child is not None and child not in called and (whole or name in used):
                called.append(child)
    return called


def _has_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return False
    return type(module).forward is kind.forward


# --- Calls in a trace ---------------------------------------------------------------------------------------


def _calls_in(graph: fx.Graph, names: Mapping[nn.Module, str], caller: str) -> Iterator[Call]:
    modules = {path: module for module, path in names.items()}
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "placeholder")]
    layers = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    before, after = {}, {}
    for node, following in itertools.pairwise(nodes):
        if node in layers and following in layers and list(node.users) == [following]:
            before[following], after[node] = layers[node], layers[following]
    for node, layer in layers.items():
        yield Call(layer, before.get(node), after.get(node), _output_use(node, caller))


def _output_use(node: fx.Node, caller: str) -> str:
    users = list(node.users)
    if len(users) != 1:
        return f"its output is used {len(users)} times in {caller}"
    (user,) = users
    if user.op == "output":
        return f"its output is returned by {caller}"
    if user.op == "call_module":
        return f"another operation comes between it and {user.target} in {caller}"
    function = getattr(user.target, "__name__", str(user.target))
    return f"its output is passed to {function} in {caller}"
