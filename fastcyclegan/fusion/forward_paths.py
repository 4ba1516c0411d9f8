"""A module's forward traced by torch.fx, once for every path that it may take.

A trace shows one path. So the plain attributes of the module (its switches) are symbolic here, and where a
forward asks whether one is true, it is traced with either answer. A forward that decides by anything else is
left alone, because it branches: on data, which a trace refuses, or on what a trace does not see, for which
``_Source`` looks.
"""

from __future__ import annotations

import ast
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.fusion.class_code import local_names, methods_of, run_by, syntax_of

# What a source may mention: what follows from its arguments, and what tells the structure of a network.
_BUILT_IN = {"abs", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range"}
_BUILT_IN |= {"reversed", "slice", "sum", "super", "tuple", "zip"}
_OF_TENSORS = {name for name in dir(Tensor) if not name.startswith("_")} - {"requires_grad_"}
_OF_TENSORS |= {"children", "items", "keys", "named_children", "values"}
_JOINS = {"cat", "concat", "einsum", "hstack", "stack", "vstack"}
_UNSEEN: tuple[type[ast.AST], ...] = (ast.While, ast.Try, ast.TryStar, ast.Match, ast.Import, ast.ImportFrom)
_UNSEEN += (ast.Global, ast.Nonlocal, ast.Await, ast.Yield, ast.YieldFrom, ast.Assert, ast.Raise)
_OF_EVERY_MODULE = {*vars(nn.Module()), *dir(nn.Module)} - {"training"}
MOST_PATHS = 64


class BranchesError(Exception):
    """A forward that traces do not show whole. The message goes on from its name: "branches on data"."""


# --- What a source may mention ------------------------------------------------------------------------------


def _is_operator(value: Any) -> bool:
    """Whether ``value`` is torch's or math's, and computes something of its arguments alone."""
    if inspect.ismodule(value):
        return value.__name__.split(".")[0] in ("torch", "math")
    name = getattr(value, "__name__", "")
    if name in _OF_TENSORS | _JOINS or name.endswith("_like"):
        return value in (getattr(torch, name, None), getattr(F, name, None))
    return isinstance(value, torch.dtype) or value in (getattr(F, name, torch), getattr(math, name, torch))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


class _Source:
    """The source of a function that ``module`` runs, and the plain attributes that it reads: ``switches``.

    Raises BranchesError where it may decide by what a trace does not see.
    """

    def __init__(self, function: FunctionType, module: nn.Module) -> None:
        self.module, self.switches = module, set[str]()
        nodes = syntax_of(function)
        if not nodes:
            raise BranchesError("has no source that can be read")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and not _is_plain(parameter.default):
                raise BranchesError(f"may branch on its argument `{parameter.name}`")
        self.known = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        self.me = next(iter(inspect.signature(function).parameters), "")
        self.local = local_names(nodes)
        self.of_layers: set[str] = set()
        for layer in set(module.modules()) - {module}:
            if methods_of(type(layer)) or layer._modules or type(layer) is nn.Module:
                self.of_layers |= {*dir(type(layer)), *vars(layer)} - _OF_EVERY_MODULE
        for node in nodes:
            if not self._is_seen(node):
                raise BranchesError(f"may branch on `{ast.unparse(node).splitlines()[0][:50]}`")

    def _is_seen(self, node: ast.AST) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self.local or self._is_known(name)
            case ast.Attribute(value=ast.Name(id=name), ctx=ast.Load()) if name == self.me:
                return self._is_own(node.attr)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                return True
            case ast.Attribute(value=ast.Name(id=name), attr="append"):
                return name in self.local
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
                if inspect.ismodule(self._meaning(owner)):
                    return _is_operator(self._meaning(node))
                return name in _OF_TENSORS - self.of_layers
            case ast.Attribute() | ast.Compare(ops=[ast.Is() | ast.IsNot(), *_]):
                return False
        return not isinstance(node, _UNSEEN)

    def _meaning(self, node: ast.expr) -> Any:
        """Return what a global name is, or an attribute of a Python module, None for anything else."""
        if isinstance(node, ast.Name) and node.id not in self.local:
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute) and inspect.ismodule(self._meaning(node.value)):
            return getattr(self._meaning(node.value), node.attr, None)
        return None

    def _is_known(self, name: str) -> bool:
        value = self.known.get(name)
        if value is None:
            return name in _BUILT_IN
        return value in type(self.module).__mro__ or _is_operator(value)

    def _is_own(self, name: str) -> bool:
        """Whether ``self.name`` is a layer, a tensor, a method, or a switch, which is noted."""
        module = self.module
        registered = module._modules.keys() | module._parameters.keys() | module._buffers.keys()
        if name in registered | {"children", "named_children"}:
            return True
        if name in _OF_EVERY_MODULE or name in vars(module).keys() & methods_of(type(module)).keys():
            return False
        value = vars(module).get(name, inspect.getattr_static(type(module), name, module))
        if _is_plain(value):
            self.switches.add(name)
            return True
        return name in methods_of(type(module)) or isinstance(value, Tensor) or _is_operator(value)


# --- Traces -------------------------------------------------------------------------------------------------


class _NoTensors(TorchDispatchMode):
    """Refuses to compute: what tensors a trace has are of the forward's own making, and may be random."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise BranchesError(f"makes tensors of its own (by {func._schema.name})")


class _Unknown:
    """A value whose text and hash nobody may ask for: they are the trace's."""

    def _refuse(self, *args: Any) -> Any:
        raise BranchesError("looks at a value as a text, or in a set")

    __hash__ = __str__ = __repr__ = __format__ = _refuse

    def __getattr__(self, name: str) -> Any:
        return _Part(self, name)  # type: ignore[arg-type]


class _Symbol(_Unknown, fx.Proxy):
    """A result of the trace."""


class _Part(_Unknown, fx.proxy.Attribute):
    """An attribute of one."""


class _Tracer(fx.Tracer):
    """Records the calls of the modules in ``names``, and goes into slices of them, made on the way.

    ``answers``: whether each of the ``switches`` is true. One that is asked for the first time is, and is
    added.
    """

    proxy_buffer_attributes = True

    def __init__(self, names: Mapping[nn.Module, str], switches: set[str], answers: dict[str, bool]) -> None:
        super().__init__()
        self.names, self.switches, self.answers = names, switches, answers

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_args_for_root(*args, **kwargs)
        for name in self.switches:
            vars(self.root)[name] = self.create_proxy("placeholder", f"self.{name}", (), {})
        return made

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def path_of_module(self, mod: nn.Module) -> str:
        return self.names[mod]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if m in self.names:
            return super().call_module(m, forward, args, kwargs)
        return forward(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, nn.Module):
            raise BranchesError("hands a layer on")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        asked = str(obj.node.target)
        if obj.node.op != "placeholder":
            of = [f"`{node.target}`" for node in obj.node.all_input_nodes if node.op == "placeholder"]
            on = "data"
            if of and of[0].startswith("`self."):
                on = of[0]
            raise BranchesError(f"branches on {on} (by `{getattr(obj.node.target, '__name__', asked)}`)")
        if not asked.startswith("self."):
            raise BranchesError(f"branches on its argument `{asked}`")
        return self.answers.setdefault(asked, True)


def _trace(module: nn.Module, *tracing: Any) -> fx.Graph:
    """Trace a stand-in for ``module``, which has the switches as attributes."""
    stand_in: nn.Module = object.__new__(type(module))
    vars(stand_in).update(vars(module))
    with warnings.catch_warnings(), _NoTensors():
        warnings.simplefilter("ignore")
        return _Tracer(*tracing).trace(stand_in)


def paths(module: nn.Module, names: Mapping[nn.Module, str]) -> list[fx.Graph]:
    """Return a trace of each path of the forward of ``module``, in which the modules in ``names`` are leaves.

    Nothing is run, and nothing changed. Raises BranchesError, or whatever a forward raises that is traced.
    """
    if "forward" in vars(module):
        raise BranchesError("is an attribute of the instance")
    if any("__call__" in methods_of(type(inner)) for inner in module.modules()):
        raise BranchesError("calls a layer that has a `__call__` of its own")
    if "__getattribute__" in methods_of(type(module)):
        raise BranchesError("may branch on `__getattribute__`")
    functions, switches = run_by("forward", methods_of(type(module))), set[str]()
    if not functions and not isinstance(module, (nn.Sequential, fx.GraphModule)):
        raise BranchesError("is torch's own")
    for function in functions:
        switches |= _Source(function, module).switches
    found: list[fx.Graph] = []
    todo: list[dict[str, bool]] = [{}]
    for answers in todo:
        given = len(answers)
        graph, again = (_trace(module, names, switches, answers) for _ in range(2))
        if str(graph) != str(again):
            raise BranchesError("is traced differently twice")
        found.append(graph)
        asked = list(answers.items())
        for n in range(given, len(asked)):
            todo.append({**dict(asked[:n]), asked[n][0]: False})
        if len(todo) > MOST_PATHS:
            raise BranchesError("branches too often")
    return found
