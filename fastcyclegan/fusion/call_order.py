"""Who calls which module with what: every container's own forward, traced, or the order of a Sequential.

A trace says what a forward does in one state. So the source of all that it runs is read, and it may decide by
its switches (its attributes and optional arguments, true or not, None or not) and by its structure alone (its
modules, how many they are, and loops over them). Then it is traced with the switches in all combinations, and
all that is seen in any counts. A forward that decides by anything else cannot be followed: it may call its
children, what it can index or iterate, and whatever inside them has a name that its class's code mentions. A
method that forward does not call may call what it mentions. Calls from outside are not seen.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.fusion.control_flow import GIVEN, State, decisions, nested_in, states


@dataclass(frozen=True)
class Call:
    """One call of ``module``: whose result it alone takes, and who alone takes its result, where that is a
    module's call right beside it.

    ``fate`` says in words what becomes of the result where there is no such ``after``.
    """

    module: nn.Module
    before: nn.Module | None
    after: nn.Module | None
    fate: str = ""


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
    found, watched = CallSites(), set(watched)
    names = {module: path for path, module in root.named_modules()}
    for module, path in names.items():
        inside = watched.intersection(module.modules()) - {module}
        if not inside:
            continue
        ran: set[CodeType] = set()
        try:
            graphs = (
                [] if _is_chain(module) or _is_abstract(module) else list(_graphs(module, names, inside, ran))
            )
        # Whatever a forward raises where it is traced: it cannot be followed.
        except Exception as error:
            why = f"{_named(module, path)} cannot be followed ({_short(error)})"
            for inner in _within_reach(module):
                found.unseen.setdefault(inner, why)
            graphs = []
        for name, inner in _in_other_methods(module, ran):
            found.unseen.setdefault(inner, f"{type(module).__name__}.{name} may call it")
        if any(
            _asks_for_class(code)
            for code in {*ran, *(code for name, code in _methods(type(module)) if name not in REPRS)}
        ):
            for inner in module.modules():
                found.untouchable.setdefault(
                    inner, f"{_named(module, path)} asks for the very class of a layer"
                )
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
    """Yield what the forward of ``module`` may call: its children, those of containers that it may index or
    iterate, and named ones.
    """
    yield from _indexed(module)
    mentioned = _names_in(type(module))
    yield from (inner for path, inner in module.named_modules() if path.rpartition(".")[2] in mentioned)


def _indexed(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        if type(child).forward in (nn.Sequential.forward, nn.Module.forward):
            yield from _indexed(child)


def _methods(kind: type[nn.Module]) -> Iterator[tuple[str, CodeType]]:
    """Yield names and codes of all methods and properties of ``kind`` but torch's own."""
    for base in kind.__mro__:
        if base is object or base.__module__.split(".")[0] == "torch":
            continue
        for name, member in vars(base).items():
            functions = (
                [member.fget, member.fset]
                if isinstance(member, property)
                else [getattr(member, "__func__", member)]
            )
            yield from ((name, inspect.unwrap(f).__code__) for f in functions if inspect.isfunction(f))


def _words(codes: Iterable[CodeType]) -> set[str]:
    """Return the names, and the words in texts (for getattr), in ``codes``."""
    names: set[str] = set()
    for code in itertools.chain.from_iterable(map(nested_in, codes)):
        names.update(code.co_names, *(text.split(".") for text in code.co_consts if isinstance(text, str)))
    return names


def _names_in(kind: type[nn.Module]) -> set[str]:
    return _words(code for _, code in _methods(kind))


REPRS = ("__init__", "__repr__", "extra_repr")


def _in_other_methods(module: nn.Module, ran: set[CodeType]) -> Iterator[tuple[str, nn.Module]]:
    """Yield what a method that forward did not run may call, with the method's name: the children that it
    mentions, and what is in them.
    """
    for name, code in _methods(type(module)):
        if (
            code in ran
            or name == "forward"
            or (name.startswith("__") and name != "__call__")
            or name == "extra_repr"
        ):
            continue
        words = _words([code])
        own = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        children = [child for key, child in module.named_children() if own or key in words]
        for child in children:
            yield name, child
            if type(child).forward in (nn.Sequential.forward, nn.Module.forward):
                yield from ((name, inner) for inner in _indexed(child))
            yield from (
                (name, inner) for path, inner in child.named_modules() if path.rpartition(".")[2] in words
            )


def _asks_for_class(code: CodeType) -> bool:
    """Whether ``code`` looks at the very class of something, which isinstance does not."""
    loads = [(i.opname, i.argval) for inner in nested_in(code) for i in dis.get_instructions(inner)]
    return any(
        (op.startswith(("LOAD_GLOBAL", "LOAD_NAME")) and name == "type")
        or (op.startswith(("LOAD_ATTR", "LOAD_METHOD")) and name in ("__class__", "_get_name"))
        for op, name in loads
    )


# --- A Sequential -------------------------------------------------------------------------------------------


def _is_chain(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__


def _is_abstract(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward and "forward" not in module.__dict__


def _in_chain(module: nn.Module, path: str) -> list[Call]:
    # All entries: children() would leave out a module that comes twice.
    layers: list[Any] = list(module._modules.values())
    ends = [None, *layers, None]
    fate = f"its result leaves {path if path else 'the Sequential'}"
    return [
        Call(layer, ends[n], ends[n + 2], "" if n + 1 < len(layers) else fate)
        for n, layer in enumerate(layers)
    ]


# --- A forward ----------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Records the calls of modules by ``names``, and goes into no module but those that have none: slices,
    made on the way.

    ``given``: the attributes that are something unknown in this trace, "self.x", and the arguments that are:
    true, where that is asked.
    """

    proxy_buffer_attributes = True

    def __init__(self, names: Mapping[nn.Module, str], given: set[str]) -> None:
        super().__init__()
        self.names, self.given = names, given

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_args_for_root(*args, **kwargs)
        for name in self.given:
            if name.startswith("self."):
                self.root.__dict__[name.removeprefix("self.")] = self.create_proxy(
                    "placeholder", name, (), {}
                )
        return made

    def to_bool(self, obj: fx.Proxy) -> bool:
        return (obj.node.op == "placeholder" and obj.node.target in self.given) or super().to_bool(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        return self.names[mod]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return super().call_module(m, forward, args, kwargs) if m in self.names else forward(*args, **kwargs)


class _NothingDecided(TorchDispatchMode):
    """Refuses what would make a trace a matter of chance or of data, or change a tensor: nothing of that is
    to happen while tracing.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in func._schema.name:
            raise fx.proxy.TraceError("it decides by the content of a tensor")
        if torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            raise fx.proxy.TraceError(f"it calls {func._schema.name} on a tensor of its own")
        return func(*args, **({} if kwargs is None else kwargs))


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


def _graphs(
    module: nn.Module, names: Mapping[nn.Module, str], inside: Iterable[nn.Module], ran: set[CodeType]
) -> Iterator[fx.Graph]:
    """Yield a trace of the forward of ``module`` in every state that its code asks for. Raises whatever a
    trace may.
    """
    if "forward" in module.__dict__:
        raise fx.proxy.TraceError("it is an attribute of the instance")
    optional = [
        p for p in inspect.signature(type(module).forward).parameters.values() if p.default is not p.empty
    ]
    defaults: dict[str, Any] = {p.name: p.default for p in optional}
    frames: dict[CodeType, str] = {}
    yield _graph(module, names, inside, defaults, {}, frames)
    tried: list[State] = [{}]
    while new := [
        state for state in states(decisions(module, frames, defaults), module, defaults) if state not in tried
    ]:
        tried.append(new[0])
        try:
            yield _graph(module, names, inside, defaults, new[0], frames)
        except (AttributeError, TypeError) as error:
            # A state that cannot run, for lack of what it would need, is none; any other must be followed.
            if not isinstance(error, AttributeError) and "'NoneType' object" not in str(error):
                raise
    ran.update(frames)


def _graph(
    module: nn.Module,
    names: Mapping[nn.Module, str],
    inside: Iterable[nn.Module],
    defaults: dict[str, Any],
    state: State,
    frames: dict[CodeType, str],
) -> fx.Graph:
    """Trace a stand-in for ``module``, so that what its forward writes to itself is not written. ``frames``:
    see ``_recording``.
    """
    own = {
        name: value.copy() if isinstance(value, (dict, list, set)) else value
        for name, value in module.__dict__.items()
    }
    stand_in: nn.Module = object.__new__(type(module))
    stand_in.__dict__.update(own)
    stand_in.__dict__.update(
        {name[5:]: value for name, value in state.items() if name.startswith("self.") and value is not GIVEN}
    )
    given = {name: state.get(name, value) for name, value in defaults.items() if state.get(name) is not GIVEN}
    dice = random.getstate()
    with (
        warnings.catch_warnings(),
        _refusing_forward(inside),
        _NothingDecided(),
        _recording(stand_in, frames),
    ):
        warnings.simplefilter("ignore")
        graph = _Tracer(names, {name for name, value in state.items() if value is GIVEN}).trace(
            stand_in, given
        )
    if random.getstate() != dice:
        random.setstate(dice)
        raise fx.proxy.TraceError("it draws random numbers")
    return graph


@contextlib.contextmanager
def _recording(module: nn.Module, frames: dict[CodeType, str]) -> Iterator[None]:
    """Add the functions that run, but torch's and Python's own, each with its name for ``module``, its first
    argument, or "".
    """

    def record(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event != "call" or code.co_name in ("<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>"):
            return
        first = code.co_varnames[0] if code.co_argcount else ""
        me = first if first and frame.f_locals.get(first) is module else ""
        name = str(frame.f_globals.get("__name__", ""))
        # What collections.namedtuple makes has a name of its own, and so has what DALI puts in the place of
        # Python's test for Iterable.
        foreign = name in (__name__, "nvidia.dali._utils.hacks") or name.startswith("namedtuple_")
        foreign = foreign or name.split(".")[0] in ("torch", *sys.stdlib_module_names)
        if not foreign or (me and code.co_name == "forward"):
            # By another object's it would be the same code, and other attributes.
            frames[code] = me if frames.get(code, me) == me else ""

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(before)


# --- What a trace shows -------------------------------------------------------------------------------------


def _in_graph(graph: fx.Graph, names: Mapping[nn.Module, str], caller: str) -> list[Call]:
    modules = {path: module for module, path in names.items()}
    nodes: Sequence[fx.Node] = [node for node in graph.nodes if node.op != "get_attr"]
    takes = {a: b for a, b in itertools.pairwise(nodes) if _alone(a, b)}
    came_from = {b: a for a, b in takes.items()}
    found = []
    for node in nodes:
        if node.op == "call_module":
            before, after = (
                modules[str(other.target)] if other else None
                for other in (came_from.get(node), takes.get(node))
            )
            found.append(Call(modules[str(node.target)], before, after, "" if after else _fate(node, caller)))
    return found


def _alone(node: fx.Node, following: fx.Node) -> bool:
    """Whether both are calls of modules, and ``following``, which comes right after ``node``, alone takes its
    result.
    """
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
