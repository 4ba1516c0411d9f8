"""Who calls which module with what: every container's own forward, traced, or the order of a Sequential.

A trace says what a forward does in one state. So a module is traced as it is and with each of its own switches turned (its bool
attributes, ``training`` among them, and its optional arguments given or not), and all that is seen in any of them counts. Attributes of
other kinds are taken as they are. A forward that decides by what is in its tensors, or draws random numbers, cannot be followed: it may
call its children, what it can index or iterate, and whatever inside them has a name that its class's code mentions.
What is called from methods that forward does not call, or from outside, is not seen.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Call:
    """One call of ``module``: whose result it alone takes, and who alone takes its result, where that is a module's call right beside it.

    ``fate`` says in words what becomes of the result where there is no such ``after``.
    """

    module: nn.Module
    before: nn.Module | None
    after: nn.Module | None
    fate: str = ""


@dataclass
class CallSites:
    """All ``calls`` that were seen, and the modules that a forward which cannot be followed may call: ``unseen``, and why."""

    calls: list[Call] = field(default_factory=list)
    unseen: dict[nn.Module, str] = field(default_factory=dict)


def call_sites(root: nn.Module, watched: Iterable[nn.Module]) -> CallSites:
    """Return the calls inside ``root``, of all its modules that contain one of ``watched``. Nothing is run, and nothing changed."""
    found, watched = CallSites(), set(watched)
    names = {module: path for path, module in root.named_modules()}
    for module, path in names.items():
        inside = watched.intersection(module.modules()) - {module}
        if not inside or type(module).forward is nn.Module.forward:
            continue
        try:
            graphs = [] if _is_chain(module) else list(_graphs(module, names, inside))
        # Whatever a forward raises where it is traced: it cannot be followed.
        except Exception as error:
            why = f"{_named(module, path)} cannot be followed ({_short(error)})"
            for inner in _within_reach(module):
                found.unseen.setdefault(inner, why)
            continue
        if _is_chain(module):
            found.calls += _in_chain(module, path)
        for graph in graphs:
            found.calls += _in_graph(graph, names, _named(module, path))
    return found


def _named(module: nn.Module, path: str) -> str:
    return f"{type(module).__name__}.forward" + (f" of {path}" if path else "")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]


def _within_reach(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what the forward of ``module`` may call: its children, those of containers that it may index or iterate, and named ones."""
    yield from _indexed(module)
    mentioned = _names_in(type(module))
    yield from (inner for path, inner in module.named_modules() if path.rpartition(".")[2] in mentioned)


def _indexed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        if type(child).forward in (nn.Sequential.forward, nn.Module.forward):
            yield from _indexed(child)


def _names_in(kind: type[nn.Module]) -> set[str]:
    """Return the names, and the words in texts (for getattr), in the code of all methods of ``kind`` but torch's own."""
    waiting: list[Any] = [vars(base) for base in kind.__mro__ if not base.__module__.startswith("torch.") and base is not object]
    codes = [member.__code__ for members in waiting for member in members.values() if inspect.isfunction(member)]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names.update(code.co_names, *(text.split(".") for text in code.co_consts if isinstance(text, str)))
        codes += [inner for inner in code.co_consts if inspect.iscode(inner)]
    return names


# --- A Sequential ---------------------------------------------------------------------------------------------------------------------


def _is_chain(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__


def _in_chain(module: nn.Module, path: str) -> list[Call]:
    # All entries: children() would leave out a module that comes twice.
    layers: list[Any] = list(module._modules.values())
    ends = [None, *layers, None]
    fate = f"its result leaves {path or 'the Sequential'}"
    return [Call(layer, ends[n], ends[n + 2], "" if n + 1 < len(layers) else fate) for n, layer in enumerate(layers)]


# --- A forward ------------------------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Records the calls of modules by ``names``, and goes into no module but those that have none: slices, made on the way."""

    proxy_buffer_attributes = True

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.names = names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        return self.names[mod]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return super().call_module(m, forward, args, kwargs) if m in self.names else forward(*args, **kwargs)


class _NothingDecided(TorchDispatchMode):
    """Refuses what would make a trace a matter of chance or of data, or change a tensor: nothing of that is to happen while tracing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in func._schema.name:
            raise fx.proxy.TraceError("it decides by the content of a tensor")
        if torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            raise fx.proxy.TraceError(f"it calls {func._schema.name} on a tensor of its own")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _refusing_forward(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let ``module.forward(x)`` fail: a trace does not see it, only ``module(x)``."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise fx.proxy.TraceError("it calls the forward of a module, not the module")

    plain = [module for module in modules if "forward" not in module.__dict__]
    for module in plain:
        module.__dict__["forward"] = refuse
    try:
        yield
    finally:
        for module in plain:
            del module.__dict__["forward"]


def _graphs(module: nn.Module, names: Mapping[nn.Module, str], inside: Iterable[nn.Module]) -> Iterator[fx.Graph]:
    """Yield a trace of the forward of ``module`` as it is, and with each switch turned. Raises whatever a trace may."""
    if "forward" in module.__dict__:
        raise fx.proxy.TraceError("it is an attribute of the instance")
    optional = [p for p in inspect.signature(type(module).forward).parameters.values() if p.default is not p.empty]
    given: dict[str, Any] = {p.name: p.default for p in optional}
    yield _graph(module, names, inside, {}, given)
    for state, arguments in _turned(module, given):
        try:
            yield _graph(module, names, inside, state, arguments)
        except (AttributeError, TypeError) as error:
            # A state that cannot run, for lack of what it would need, is none; any other must be followed.
            if not isinstance(error, AttributeError) and "'NoneType' object" not in str(error):
                raise


def _turned(module: nn.Module, given: dict[str, Any]) -> Iterator[tuple[dict[str, bool], dict[str, Any]]]:
    for name, value in module.__dict__.items():
        if isinstance(value, bool):
            yield {name: not value}, given
    for name, value in given.items():
        if isinstance(value, bool):
            yield {}, {**given, name: not value}
    if any(value is None for value in given.values()):
        yield {}, {name: value for name, value in given.items() if value is not None}


def _graph(
    module: nn.Module, names: Mapping[nn.Module, str], inside: Iterable[nn.Module], state: dict[str, bool], given: dict[str, Any]
) -> fx.Graph:
    """Trace a stand-in for ``module``, so that what its forward writes to itself is not written. Arguments in ``given`` are as they are."""
    own = {name: value.copy() if isinstance(value, (dict, list, set)) else value for name, value in module.__dict__.items()}
    stand_in: nn.Module = object.__new__(type(module))
    stand_in.__dict__.update(own | state)
    dice = random.getstate()
    with warnings.catch_warnings(), _refusing_forward(inside), _NothingDecided():
        warnings.simplefilter("ignore")
        graph = _Tracer(names).trace(stand_in, given)
    if random.getstate() != dice:
        random.setstate(dice)
        raise fx.proxy.TraceError("it draws random numbers")
    return graph


def _in_graph(graph: fx.Graph, names: Mapping[nn.Module, str], caller: str) -> list[Call]:
    modules = {path: module for module, path in names.items()}
    nodes: Sequence[fx.Node] = [node for node in graph.nodes if node.op != "get_attr"]
    takes = {a: b for a, b in itertools.pairwise(nodes) if _alone(a, b)}
    came_from = {b: a for a, b in takes.items()}
    found = []
    for node in nodes:
        if node.op == "call_module":
            before, after = (modules[str(other.target)] if other else None for other in (came_from.get(node), takes.get(node)))
            found.append(Call(modules[str(node.target)], before, after, "" if after else _fate(node, caller)))
    return found


def _alone(node: fx.Node, following: fx.Node) -> bool:
    """Whether both are calls of modules, and ``following``, which comes right after ``node``, alone takes its result."""
    return node.op == following.op == "call_module" and list(node.users) == [following]


def _fate(node: fx.Node, caller: str) -> str:
    users = list(node.users)
    if len(users) != 1:
        return f"its result is used {len(users)} times in {caller}"
    (user,) = users
    if user.op == "output":
        return f"its result leaves {caller}"
    what = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", str(user.target))
    return f"its result goes to {what} in {caller}"
