"""What the code of somebody else's class mentions, and to what its attributes refer: read, not run."""

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

NOT_THEIRS = {"torch", *sys.stdlib_module_names}
_OPAQUE = (ModuleType, torch.Tensor, str)
MOST_REFERENCES = 10_000

Methods = Mapping[str, list[FunctionType]]


def methods_of(kind: type) -> Methods:
    """Return the methods and properties of ``kind`` by name, also those it overrides, but none of torch's."""
    found: dict[str, list[FunctionType]] = defaultdict(list)
    for base in kind.__mro__:
        if base is not object and base.__module__.split(".")[0] not in ("torch", "typing"):
            for name, member in vars(base).items():
                function = inspect.unwrap(getattr(member, "fget", getattr(member, "__func__", member)))
                if inspect.isfunction(function):
                    found[name].append(function)
    return found


def syntax_of(function: FunctionType) -> tuple[ast.AST, ...]:
    """Return the nodes of the source of ``function`` but its annotations, none where there is no source."""
    return _syntax_of(function.__code__)


# By its code, which holds nothing: a function may hold a network.
@functools.lru_cache(maxsize=512)
def _syntax_of(code: CodeType) -> tuple[ast.AST, ...]:
    tree: ast.AST
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return ()
    if code.co_name == "<lambda>":
        # The source is that of the statement around it.
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        if len(found) > 1:
            return ()
        tree = found[0]
    for node in ast.walk(tree):
        for annotation in {"annotation", "returns"}.intersection(node._fields):
            setattr(node, annotation, None)
    return tuple(ast.walk(tree))


def words_of(*functions: FunctionType) -> set[str]:
    """Return the names that ``functions`` read, also those in texts, as for ``getattr``."""
    words: set[str] = set()
    codes = [function.__code__ for function in functions if not syntax_of(function)]
    for code in codes:
        words.update(code.co_names, *(text.split(".") for text in code.co_consts if isinstance(text, str)))
        codes += filter(inspect.iscode, code.co_consts)
    for node in itertools.chain.from_iterable(map(syntax_of, functions)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.update(node.value.split("."))
        elif isinstance(getattr(node, "ctx", None), ast.Load):
            words |= {getattr(node, "attr", ""), getattr(node, "id", "")}
    return words


def run_by(name: str, methods: Methods) -> list[FunctionType]:
    """Return what method ``name`` may run of ``methods``: itself, what it mentions, what that mentions ..."""
    ran = list(methods[name])
    for function in ran:
        for word in words_of(function) & methods.keys():
            ran += [other for other in methods[word] if other not in ran]
    return ran


def local_names(nodes: tuple[ast.AST, ...]) -> set[str]:
    """Return the arguments and variables of the function with these ``nodes``."""
    names = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def calls_anything(function: FunctionType) -> bool:
    """Whether ``function`` calls what it has in a variable or an entry."""
    nodes = syntax_of(function)
    local = local_names(nodes)
    for node in nodes:
        if isinstance(node, ast.Call):
            is_variable = isinstance(node.func, ast.Name) and node.func.id in local
            if is_variable or isinstance(node.func, (ast.Subscript, ast.Call)):
                return True
    return not nodes


def hands_on(function: FunctionType, layers: Collection[str]) -> bool:
    """Whether ``function`` gives its module, or one of its ``layers``, to a function or a method."""
    me = next(iter(inspect.signature(function).parameters), "")
    for node in syntax_of(function):
        for given in node.args if isinstance(node, ast.Call) else ():
            match given:
                case ast.Name(id=name) if name == me:
                    return True
                case ast.Attribute(value=ast.Name(id=name), attr=layer) if name == me and layer in layers:
                    return True
    return False


def written_by(function: FunctionType) -> set[str]:
    """Return the attributes that ``function`` sets or deletes."""
    nodes = [node for node in syntax_of(function) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if not isinstance(node.ctx, ast.Load)}


def reachable(values: list[Any]) -> tuple[list[nn.Module], list[FunctionType]]:
    """Return the modules to which ``values`` refer, and the functions that are not torch's or Python's."""
    modules: list[nn.Module] = []
    functions: list[FunctionType] = []
    seen = set[int]()
    for value in values:
        if type(value) in weakref.ProxyTypes and isinstance(value, nn.Module):
            # What a method of a proxy is bound to is the module itself.
            values.append(value.modules.__self__)  # type: ignore[attr-defined]
        elif isinstance(value, nn.Module):
            modules.append(value)
        elif id(value) not in seen and len(seen) < MOST_REFERENCES and not isinstance(value, _OPAQUE):
            seen.add(id(value))
            is_theirs = str(getattr(value, "__module__", "")).split(".")[0] not in NOT_THEIRS
            if isinstance(value, weakref.ref):
                values.append(value())
            elif isinstance(value, FunctionType) and is_theirs:
                functions.append(value)
                values += [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
                values += [value.__globals__.get(word) for word in words_of(value)]
            elif isinstance(value, type) and is_theirs and not issubclass(value, nn.Module):
                values += vars(value).values()
            elif not isinstance(value, (FunctionType, type)):
                values += gc.get_referents(value)
    return modules, functions
