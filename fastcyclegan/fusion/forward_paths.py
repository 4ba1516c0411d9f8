"""Trace the forward of a module with torch.fx, once for every path that it can take.

A trace shows a single path. The plain attributes of the module (its switches) are therefore symbolic here,
and a forward that tests one of them is traced with both answers. A forward that depends on anything else is
not followed. If it branches on data, tracing raises an error. If it may branch on something that a trace does
not show, ``_Source`` detects this in its source code.
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

from fastcyclegan.fusion.class_code import local_names, methods_of, methods_run_by, syntax_of

# The names that a source may mention: their results depend only on arguments and on the network's structure.
_BUILTINS = {"abs", "bool", "dict", "enumerate", "float", "int", "len", "list", "max", "min", "range"}
_BUILTINS |= {"reversed", "slice", "sum", "super", "tuple", "zip"}
_TENSOR_METHODS = {name for name in dir(Tensor) if not name.startswith("_")} - {"requires_grad_"}
_TENSOR_METHODS |= {"children", "items", "keys", "named_children", "values"}
_TENSOR_JOINS = {"cat", "concat", "einsum", "hstack", "stack", "vstack"}
_UNTRACEABLE: tuple[type[ast.AST], ...] = (
    ast.While,
    ast.Try,
    ast.TryStar,
    ast.Match,
    ast.Import,
    ast.ImportFrom,
)
_UNTRACEABLE += (ast.Global, ast.Nonlocal, ast.Await, ast.Yield, ast.YieldFrom, ast.Assert, ast.Raise)
_MODULE_ATTRIBUTES = {*vars(nn.Module()), *dir(nn.Module)} - {"training"}
MAX_PATHS = 64


class BranchesError(Exception):
    """Raised for a forward that traces do not show completely.

    The message continues a sentence that begins with the name of the forward, for example "branches on data".
    """


# --- Source code --------------------------------------------------------------------------------------------


def _is_operator(value: Any) -> bool:
    """Return whether ``value`` is from torch or math, and its result depends only on its arguments."""
    if inspect.ismodule(value):
        return value.__name__.split(".")[0] in ("torch", "math")
    name = getattr(value, "__name__", "")
    if name in _TENSOR_METHODS | _TENSOR_JOINS or name.endswith("_like"):
        return value in (getattr(torch, name, None), getattr(F, name, None))
    return isinstance(value, torch.dtype) or value in (getattr(F, name, torch), getattr(math, name, torch))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


class _Source:
    """Checks the source of a function that ``module`` runs, and collects its switches.

    ``switches`` are the plain attributes of ``module`` that the function reads. Raises BranchesError if the
    function may depend on something that a trace does not show.
    """

    def __init__(self, function: FunctionType, module: nn.Module) -> None:
        self.module, self.switches = module, set[str]()
        nodes = syntax_of(function)
        if not nodes:
            raise BranchesError("has no readable source code")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.default is not parameter.empty and not _is_plain(parameter.default):
                raise BranchesError(f"may branch on its argument `{parameter.name}`")
        self.globals = {**function.__globals__, **inspect.getclosurevars(function).nonlocals}
        self.self_name = next(iter(inspect.signature(function).parameters), "")
        self.local = local_names(nodes)
        self.layer_attributes: set[str] = set()
        for layer in set(module.modules()) - {module}:
            if methods_of(type(layer)) or layer._modules or type(layer) is nn.Module:
                self.layer_attributes |= {*dir(type(layer)), *vars(layer)} - _MODULE_ATTRIBUTES
        for node in nodes:
            if not self._is_traceable(node):
                raise BranchesError(f"may branch on `{ast.unparse(node).splitlines()[0][:50]}`")

    def _is_traceable(self, node: ast.AST) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self.local or self._is_allowed_global(name)
            case ast.Attribute(value=ast.Name(id=name), ctx=ast.Load()) if name == self.self_name:
                return self._is_allowed_attribute(node.attr)
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                return True
            case ast.Attribute(value=ast.Name(id=name), attr="append"):
                return name in self.local
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()):
                if inspect.ismodule(self._resolve(owner)):
                    return _is_operator(self._resolve(node))
                return name in _TENSOR_METHODS - self.layer_attributes
            case ast.Attribute() | ast.Compare(ops=[ast.Is() | ast.IsNot(), *_]):
                return False
        return not isinstance(node, _UNTRACEABLE)

    def _resolve(self, node: ast.expr) -> Any:
        """Return the value of a global name or of an attribute of a Python module, or None otherwise."""
        if isinstance(node, ast.Name) and node.id not in self.local:
            return self.globals.get(node.id)
        if isinstance(node, ast.Attribute) and inspect.ismodule(self._resolve(node.value)):
            return getattr(self._resolve(node.value), node.attr, None)
        return None

    def _is_allowed_global(self, name: str) -> bool:
        value = self.globals.get(name)
        if value is None:
            return name in _BUILTINS
        return value in type(self.module).__mro__ or _is_operator(value)

    def _is_allowed_attribute(self, name: str) -> bool:
        """Return whether ``self.name`` is a layer, a tensor, a method or a switch.

        If it is a switch, it is added to ``switches``.
        """
        module = self.module
        registered = module._modules.keys() | module._parameters.keys() | module._buffers.keys()
        if name in registered | {"children", "named_children"}:
            return True
        if name in _MODULE_ATTRIBUTES or name in vars(module).keys() & methods_of(type(module)).keys():
            return False
        value = vars(module).get(name, inspect.getattr_static(type(module), name, module))
        if _is_plain(value):
            self.switches.add(name)
            return True
        return name in methods_of(type(module)) or isinstance(value, Tensor) or _is_operator(value)


# --- Traces -------------------------------------------------------------------------------------------------


class _NoTensors(TorchDispatchMode):
    """Raises BranchesError for any computation on real tensors during a trace.

    Such tensors were created by the forward, and may be random.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise BranchesError(f"creates tensors (by {func._schema.name})")


class _Unknown:
    """A traced value that cannot be hashed or converted to a string.

    The results would not be those of the real value.
    """

    def _refuse(self, *args: Any) -> Any:
        raise BranchesError("uses a value as a string or in a set")

    __hash__ = __str__ = __repr__ = __format__ = _refuse

    def __getattr__(self, name: str) -> Any:
        return _SymbolAttribute(self, name)  # type: ignore[arg-type]


class _Symbol(_Unknown, fx.Proxy):
    """A value in a trace."""


class _SymbolAttribute(_Unknown, fx.proxy.Attribute):
    """An attribute of a value in a trace."""


class _Tracer(fx.Tracer):
    """Records the calls of the modules in ``names``.

    A slice of a container that the forward makes (``self.layers[:3]``) is traced into, not recorded.

    ``answers`` contains the assumed value of each of the ``switches``, true or false. A switch that is tested
    for the first time is assumed to be true, and is added to ``answers``.
    """

    proxy_buffer_attributes = True

    def __init__(self, names: Mapping[nn.Module, str], switches: set[str], answers: dict[str, bool]) -> None:
        super().__init__()
        self.names, self.switches, self.answers = names, switches, answers

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> Any:
        root_args = super().create_args_for_root(*args, **kwargs)
        for name in self.switches:
            vars(self.root)[name] = self.create_proxy("placeholder", f"self.{name}", (), {})
        return root_args

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
            raise BranchesError("passes on a layer")
        return super().create_arg(a)

    def to_bool(self, obj: fx.Proxy) -> bool:
        target = str(obj.node.target)
        if obj.node.op != "placeholder":
            inputs = [f"`{node.target}`" for node in obj.node.all_input_nodes if node.op == "placeholder"]
            cause = "data"
            if inputs and inputs[0].startswith("`self."):
                cause = inputs[0]
            raise BranchesError(f"branches on {cause} (by `{getattr(obj.node.target, '__name__', target)}`)")
        if not target.startswith("self."):
            raise BranchesError(f"branches on its argument `{target}`")
        return self.answers.setdefault(target, True)


def _trace(module: nn.Module, *tracing: Any) -> fx.Graph:
    """Trace a stand-in for ``module`` that has the symbolic switches as attributes."""
    stand_in: nn.Module = object.__new__(type(module))
    vars(stand_in).update(vars(module))
    with warnings.catch_warnings(), _NoTensors():
        warnings.simplefilter("ignore")
        return _Tracer(*tracing).trace(stand_in)


def trace_paths(module: nn.Module, names: Mapping[nn.Module, str]) -> list[fx.Graph]:
    """Return one trace per path through the forward of ``module``.

    The modules in ``names`` are leaves, which are not traced into. Nothing is computed and nothing is
    changed. Raises BranchesError, or any exception of the traced forward.
    """
    if "forward" in vars(module):
        raise BranchesError("was replaced on the instance")
    if any("__call__" in methods_of(type(inner)) for inner in module.modules()):
        raise BranchesError("calls a layer that defines its own `__call__`")
    if "__getattribute__" in methods_of(type(module)):
        raise BranchesError("may branch in `__getattribute__`")
    functions, switches = methods_run_by("forward", methods_of(type(module))), set[str]()
    if not functions and not isinstance(module, (nn.Sequential, fx.GraphModule)):
        raise BranchesError("is one of torch's")
    for function in functions:
        switches |= _Source(function, module).switches
    graphs: list[fx.Graph] = []
    todo: list[dict[str, bool]] = [{}]
    for answers in todo:
        preset = len(answers)
        graph, again = (_trace(module, names, switches, answers) for _ in range(2))
        if str(graph) != str(again):
            raise BranchesError("gives two different traces")
        graphs.append(graph)
        tested = list(answers.items())
        for n in range(preset, len(tested)):
            todo.append({**dict(tested[:n]), tested[n][0]: False})
        if len(todo) > MAX_PATHS:
            raise BranchesError("has too many branches")
    return graphs
