"""Which module is called with the result of which, as traces of all forwards show it.

All calls count, on every path of every forward. What a forward that cannot be followed may call, or another
method, is kept apart. Calls from outside of the network are not seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fastcyclegan.errors import one_line
from fastcyclegan.fusion.class_code import (
    NOT_THEIRS,
    calls_anything,
    hands_on,
    methods_of,
    reachable,
    run_by,
    words_of,
    written_by,
)
from fastcyclegan.fusion.forward_paths import BranchesError, paths

# Torch's modules that call what they wrap, and nothing inside it.
_WRAPPERS = {"DataParallel", "DistributedDataParallel", "OptimizedModule"}
_SILENT = {*dir(nn.Module), "extra_repr"} - {"__call__", "forward"}
_VERY_CLASS = {"type", "__class__", "_get_name", "repr", "hasattr"}
# With these words any layer may be called, and with those one that is found by going through all.
_ANY = {"getattr", "setattr", "delattr", "apply", "add_module", "_modules", "__dict__"}
_ANY |= {"register_module", "register_forward_hook", "register_forward_pre_hook"}
_ITERATING = {"children", "modules", "named_children", "named_modules"}


@dataclass(frozen=True)
class Call:
    """One call of ``module``: whose result it alone takes, and who alone takes its result, where that is a
    module's call right beside it.

    ``fate`` says in words what becomes of the result.
    """

    module: nn.Module
    before: nn.Module | None
    after: nn.Module | None
    fate: str


@dataclass
class CallSites:
    """All ``calls`` that were seen, and the modules that code which cannot be followed may call: ``unseen``,
    and why.

    ``untouchable``: those that are to keep their very class, and why.
    """

    calls: list[Call] = field(default_factory=list)
    unseen: dict[nn.Module, str] = field(default_factory=dict)
    untouchable: dict[nn.Module, str] = field(default_factory=dict)


def call_sites(root: nn.Module, watched: Iterable[nn.Module]) -> CallSites:
    """Return the calls inside ``root``, of all its modules that contain one of ``watched``. Nothing is run,
    and nothing changed.
    """
    found, names = CallSites(), {module: path for path, module in root.named_modules()}
    for module in names:
        inside = set(module.modules()) - {module}
        if isinstance(module, torch.jit.ScriptModule):
            continue
        follows = bool(inside.intersection(watched)) and not _calls_nothing(module)
        why = _add_forward(found, module, names) if follows else ""
        _add_other_code(found, module, names, why, follows and not why)
    return found


def _calls_nothing(module: nn.Module) -> bool:
    """Whether ``module`` is only a place for others, or wraps one whole."""
    is_wrapper = type(module).__name__ in _WRAPPERS and not methods_of(type(module))
    return is_wrapper or _has_forward(module, nn.Module)


def _add_forward(found: CallSites, module: nn.Module, names: Mapping[nn.Module, str]) -> str:
    """Add the calls of the forward of ``module``; return "", or why it cannot be followed."""
    caller = f"{type(module).__name__}.forward"
    if names[module]:
        caller += f" of {names[module]}"
    if _has_forward(module, nn.Sequential):
        caller = names[module] if names[module] else "the Sequential"
    try:
        for graph in paths(module, names):
            found.calls += _in_graph(graph, names, caller)
    except BranchesError as error:
        return f"{caller} {error}"
    # Whatever a forward raises where it is traced.
    except Exception as error:
        return f"{caller} cannot be traced ({one_line(error, 80)})"
    return ""


def _add_other_code(
    found: CallSites, module: nn.Module, names: Mapping[nn.Module, str], why: str, followed: bool
) -> None:
    """Keep apart what code of ``module`` may call, besides a forward that was ``followed``: other methods,
    hooks, functions that its attributes hold. ``why``: the forward cannot be followed.
    """
    kind, methods = type(module), methods_of(type(module))
    of_forward, of_building = run_by("forward", methods), run_by("__init__", methods)
    values = [value for name, value in vars(module).items() if name != "_modules"]
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in NOT_THEIRS:
            values += [value for name, value in vars(base).items() if name not in _SILENT]
    held, functions = reachable(values)
    held = [inner for module in held for inner in ([module] if module in names else module.modules())]
    children = {key: child for key, child in module._modules.items() if child is not None}
    if why:
        for inner in _reached([*held, *children.values()], words_of(*of_forward)):
            found.unseen.setdefault(inner, why)
    for function in functions:
        name, words = function.__name__, words_of(function)
        if words & _VERY_CLASS:
            reason = f"{kind.__name__}.{name} asks for the very class of a layer"
            found.untouchable.update(dict.fromkeys(module.modules(), reason))
        is_private = name == "forward" or name.startswith("_")
        if (followed or why) and function in of_forward and is_private:
            continue
        if function in methods[name]:
            words = words_of(*run_by(name, methods))
        if hands_on(function, children.keys()):
            words |= _ANY
        elif function not in of_building:
            words |= written_by(function)
        whole = "__getattr__" in methods or bool(words & _ANY) or calls_anything(function)
        called = [child for key, child in children.items() if whole or key in words]
        for inner in _reached([*held, *called], words):
            found.unseen.setdefault(inner, f"{kind.__name__}.{name} may call it")


def _reached(called: list[nn.Module], words: set[str]) -> list[nn.Module]:
    """Return the modules ``called``, and those inside them that code with these ``words`` may call."""
    for module in called:
        whole = _has_forward(module, nn.Sequential) or _has_forward(module, nn.Module)
        whole = whole or bool(words & (_ANY | _ITERATING | methods_of(type(module)).keys()))
        for name, child in module._modules.items():
            if child is not None and child not in called and (whole or name in words):
                called.append(child)
    return called


def _has_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
        return False
    return type(module).forward is kind.forward


# --- What a trace shows -------------------------------------------------------------------------------------


def _in_graph(graph: fx.Graph, names: Mapping[nn.Module, str], caller: str) -> Iterator[Call]:
    modules = {path: module for module, path in names.items()}
    nodes = [node for node in graph.nodes if node.op not in ("get_attr", "placeholder")]
    layers = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    before, after = {}, {}
    for node, following in itertools.pairwise(nodes):
        if node in layers and following in layers and list(node.users) == [following]:
            before[following], after[node] = layers[node], layers[following]
    for node, layer in layers.items():
        yield Call(layer, before.get(node), after.get(node), _fate(node, caller))


def _fate(node: fx.Node, caller: str) -> str:
    users = list(node.users)
    if len(users) != 1:
        return f"its result is used {len(users)} times in {caller}"
    (user,) = users
    if user.op == "output":
        return f"its result leaves {caller}"
    if user.op == "call_module":
        return f"something is done between it and {user.target} in {caller}"
    what = getattr(user.target, "__name__", str(user.target))
    return f"its result goes to {what} in {caller}"
