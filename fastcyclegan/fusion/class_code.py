"""Find the names that the code of a user's class mentions, and the objects that its attributes refer to.

The code is only read, and never run.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import itertools
import sys
import textwrap
import weakref
from collections import defaultdict
from collections.abc import Collection, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

NOT_USER_CODE = {"torch", *sys.stdlib_module_names}
_OPAQUE = (ModuleType, torch.Tensor, str)
MAX_REFERENCES = 10_000

Methods = Mapping[str, list[FunctionType]]


def methods_of(kind: type) -> Methods:
    """Return the methods and properties of ``kind`` by name, including overridden ones, except torch's."""
    methods: dict[str, list[FunctionType]] = defaultdict(list)
    for base in kind.__mro__:
        if base is not object and base.__module__.split(".")[0] not in ("torch", "typing"):
            for name, member in vars(base).items():
                function = inspect.unwrap(getattr(member, "fget", getattr(member, "__func__", member)))
                if inspect.isfunction(function):
                    methods[name].append(function)
    return methods


def syntax_of(function: FunctionType) -> tuple[ast.AST, ...]:
    """Return the syntax nodes of ``function`` without its annotations, or () if it has no source code."""
    return _syntax_of(function.__code__)


# Cached by the code object, which holds no references: a function could keep a network alive.
@functools.lru_cache(maxsize=512)
def _syntax_of(code: CodeType) -> tuple[ast.AST, ...]:
    tree: ast.AST
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return ()
    if code.co_name == "<lambda>":
        # The source is that of the whole statement around the lambda.
        lambdas = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        if len(lambdas) > 1:
            return ()
        tree = lambdas[0]
    for node in ast.walk(tree):
        for annotation in {"annotation", "returns"}.intersection(node._fields):
            setattr(node, annotation, None)
    return tuple(ast.walk(tree))


def names_read_by(*functions: FunctionType) -> set[str]:
    """Return the names that ``functions`` read, including names in strings, which ``getattr`` could use."""
    names: set[str] = set()
    codes = [function.__code__ for function in functions if not syntax_of(function)]
    for code in codes:
        names.update(code.co_names, *(text.split(".") for text in code.co_consts if isinstance(text, str)))
        codes += filter(inspect.iscode, code.co_consts)
    for node in itertools.chain.from_iterable(map(syntax_of, functions)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.update(node.value.split("."))
        elif isinstance(getattr(node, "ctx", None), ast.Load):
            names |= {getattr(node, "attr", ""), getattr(node, "id", "")}
    return names


def methods_run_by(name: str, methods: Methods) -> list[FunctionType]:
    """Return the ``methods`` that calling the method ``name`` may run.

    These are the method itself, all methods whose names it mentions, those that they mention, and so on.
    """
    may_run = list(methods[name])
    for function in may_run:
        for mentioned in names_read_by(function) & methods.keys():
            may_run += [other for other in methods[mentioned] if other not in may_run]
    return may_run


def local_names(nodes: tuple[ast.AST, ...]) -> set[str]:
    """Return the arguments and local variables of the function whose syntax nodes are ``nodes``."""
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def calls_variables(function: FunctionType) -> bool:
    """Return whether ``function`` calls something stored in a variable or in a container."""
    nodes = syntax_of(function)
    local = local_names(nodes)
    for node in nodes:
        if isinstance(node, ast.Call):
            is_variable = isinstance(node.func, ast.Name) and node.func.id in local
            if is_variable or isinstance(node.func, (ast.Subscript, ast.Call)):
                return True
    return not nodes


def passes_on_layers(function: FunctionType, layers: Collection[str]) -> bool:
    """Return whether the method ``function`` passes ``self`` or one of its ``layers`` to another function."""
    this = next(iter(inspect.signature(function).parameters), "")
    for node in syntax_of(function):
        for argument in node.args if isinstance(node, ast.Call) else ():
            match argument:
                case ast.Name(id=name) if name == this:
                    return True
                case ast.Attribute(value=ast.Name(id=name), attr=layer) if name == this and layer in layers:
                    return True
    return False


def attributes_written_by(function: FunctionType) -> set[str]:
    """Return the attributes that ``function`` sets or deletes."""
    nodes = [node for node in syntax_of(function) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if not isinstance(node.ctx, ast.Load)}


def reachable(values: list[Any]) -> tuple[list[nn.Module], list[FunctionType]]:
    """Return the modules and the functions that ``values`` refer to, directly or through other objects.

    Functions of torch and of Python's standard library are left out.
    """
    modules: list[nn.Module] = []
    functions: list[FunctionType] = []
    seen = set[int]()
    for value in values:
        if type(value) in weakref.ProxyTypes and isinstance(value, nn.Module):
            # A method taken from a proxy is bound to the module itself.
            values.append(value.modules.__self__)  # type: ignore[attr-defined]
        elif isinstance(value, nn.Module):
            modules.append(value)
        elif id(value) not in seen and len(seen) < MAX_REFERENCES and not isinstance(value, _OPAQUE):
            seen.add(id(value))
            is_user_code = str(getattr(value, "__module__", "")).split(".")[0] not in NOT_USER_CODE
            if isinstance(value, weakref.ref):
                values.append(value())
            elif isinstance(value, FunctionType) and is_user_code:
                functions.append(value)
                values += [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
                values += [value.__globals__.get(name) for name in names_read_by(value)]
            elif isinstance(value, type) and is_user_code and not issubclass(value, nn.Module):
                values += vars(value).values()
            elif not isinstance(value, (FunctionType, type)):
                values += gc.get_referents(value)
    return modules, functions
