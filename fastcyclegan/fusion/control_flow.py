"""What a forward decides by: its switches and its structure, or more, in which case no trace tells what it
will do.

Switches are own bool attributes, optional arguments, and plain attributes that are asked only for truth or
for None. Structure is the module's own layers, their number and order. Found in the source of all functions
that ran while the forward was traced.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import fx, nn

GIVEN = object()
"""In a state: something that is not None, and true."""
State = dict[str, Any]
"""Values of attributes, "self.x", and of optional arguments, "x"."""


def nested_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if inspect.iscode(inner):
            yield from nested_in(inner)


def states(decisions_of: dict[str, set[str]], module: nn.Module, defaults: dict[str, Any]) -> list[State]:
    """Return all combinations of what the switches of ``decisions_of`` may be."""
    values: list[list[Any]] = []
    for name, asked in decisions_of.items():
        now = getattr(module, name[5:]) if name.startswith("self.") else defaults[name]
        both = [True, False] if isinstance(now, bool) else [None, GIVEN]
        # What is asked both ways may be false and not None.
        more = [now, *([] if len(asked) == 1 else [None, GIVEN, False, True])]
        values.append(
            [v for n, v in enumerate([*both, *more]) if not any(v is u for u in [*both, *more][:n])]
        )
    if len(values) > 6 or functools.reduce(lambda a, b: a * len(b), values, 1) > 128:
        raise fx.proxy.TraceError(f"it decides by too many switches: {', '.join(decisions_of)}")
    return (
        [dict(zip(decisions_of, state, strict=True)) for state in itertools.product(*values)]
        if values
        else []
    )


def decisions(
    module: nn.Module, frames: dict[CodeType, str], defaults: dict[str, Any]
) -> dict[str, set[str]]:
    """Return the switches that the functions in ``frames`` decide by, each with how it is asked: "truth",
    "none".

    Raises TraceError where one decides by anything else but structure, or where its source is not known.
    """
    found: dict[str, set[str]] = {}
    written: set[str] = set()
    inner: set[CodeType] = set()
    for code in frames:
        inner |= {nested for nested in nested_in(code) if nested is not code}
    for code, me in frames.items():
        if code in inner:
            continue
        forward = inspect.unwrap(type(module).forward).__code__ is code
        function = _Function(_tree(code), module, me, defaults if forward else {}, found)
        function.check()
        written |= {
            f"self.{node.attr}"
            for node in function.nodes
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
        }
    for name in written & found.keys():
        raise _undecided(name)
    return found


def _undecided(what: ast.AST | str) -> fx.proxy.TraceError:
    text = what if isinstance(what, str) else " ".join(ast.unparse(what).split())
    return fx.proxy.TraceError(f"it decides by more than its switches: {text[:50]}")


@functools.lru_cache(maxsize=512)
def _tree(code: CodeType) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError) as error:
        raise fx.proxy.TraceError(f"the source of {code.co_name} is not known") from error


COUNTS = ("range", "len", "enumerate", "zip", "reversed", "list", "tuple")
VIEWS = ("children", "named_children", "items", "values", "keys")
PICKS = ("get", "pop", "setdefault", "get_submodule", "__getitem__", "__getattr__")
REFUSED = ("setattr", "delattr", "eval", "exec", "vars", "locals", "globals", "filter")


class _Function:
    """The source of a function and what it decides by. ``me``: its name for ``module``; ``optional``: the
    arguments that are switches.
    """

    def __init__(
        self, tree: ast.AST, module: nn.Module, me: str, optional: dict[str, Any], found: dict[str, set[str]]
    ) -> None:
        self.nodes, self.module, self.found = list(ast.walk(tree)), module, found
        self.stored = {
            node.id
            for node in self.nodes
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
        }
        self.parameters = {node.arg for node in self.nodes if isinstance(node, ast.arg)}
        self.me = "" if me in self.stored else me
        self.optional = {name: value for name, value in optional.items() if name not in self.stored}
        # Names that are bound to structure, and to lists made here: all that are stored, less those that are
        # bound to anything else.
        self.structure = self.stored - self.parameters
        self.lists = self.stored - self.parameters
        size = -1
        while size != (size := len(self.structure) + len(self.lists)):
            self._unbind()

    def _unbind(self) -> None:
        """Drop the names that are bound to what is no structure, or no list."""
        good: dict[int, tuple[bool, bool]] = {}
        for node in self.nodes:
            if isinstance(node, (ast.For, ast.comprehension)):
                structure = self._is_structure(node.iter)
                good.update({id(n): (structure, False) for n in ast.walk(node.target)})
            elif isinstance(node, ast.Assign) and all(
                isinstance(target, ast.Name) for target in node.targets
            ):
                kinds = self._is_structure(node.value), self._is_list(node.value)
                good.update({id(target): kinds for target in node.targets})
        for node in self.nodes:
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                structure, is_list = good.get(id(node), (False, False))
                self.structure -= set() if structure else {node.id}
                self.lists -= set() if is_list else {node.id}
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.attr not in ("append", "reverse")
            ):
                self.lists -= {node.value.id}

    def _is_mine(self, node: ast.AST) -> bool:
        return (
            bool(self.me)
            and isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == self.me
        )

    def _is_module(self, node: ast.AST) -> bool:
        """Whether ``node`` is self.a.b, a module, or the None in the place of one."""
        path = []
        while isinstance(node, ast.Attribute):
            path.append(node.attr)
            node = node.value
        if not (path and self.me and isinstance(node, ast.Name) and node.id == self.me):
            return False
        at: Any = self.module
        for name in reversed(path):
            if not isinstance(at, nn.Module) or name not in at._modules:
                return False
            at = at._modules[name]
        return True

    def _is_structure(self, node: ast.AST | None) -> bool:
        """Whether ``node`` depends on nothing but modules, constants, and names that are bound to such."""
        if node is None or isinstance(node, ast.Constant) or self._is_module(node):
            return True
        if isinstance(node, ast.Name):
            return node.id in self.structure
        if isinstance(node, ast.Call):
            return self._is_structural_call(node)
        parts = (
            ast.Subscript,
            ast.Slice,
            ast.Tuple,
            ast.List,
            ast.Set,
            ast.BinOp,
            ast.UnaryOp,
            ast.Compare,
            ast.BoolOp,
            ast.JoinedStr,
        )
        if not isinstance(node, (*parts, ast.FormattedValue)):
            return False
        below = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]
        return all(self._is_structure(n) for n in below)

    def _is_structural_call(self, call: ast.Call) -> bool:
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if isinstance(call.func, ast.Attribute):
            return call.func.attr in VIEWS and self._is_structure(call.func.value) and not arguments
        if not isinstance(call.func, ast.Name) or call.func.id in self.stored | self.parameters:
            return False
        if call.func.id == "isinstance" and len(arguments) == 2:
            names = {node.id for node in ast.walk(arguments[1]) if isinstance(node, ast.Name)}
            return self._is_structure(arguments[0]) and not names & (self.stored | self.parameters)
        return call.func.id in COUNTS and all(self._is_structure(argument) for argument in arguments)

    def _is_list(self, node: ast.AST) -> bool:
        """Whether ``node`` is a list made here, of a length that is structure."""
        if isinstance(node, (ast.List, ast.Tuple)):
            return not any(isinstance(element, ast.Starred) for element in node.elts)
        if isinstance(node, ast.Subscript):
            return (
                isinstance(node.slice, ast.Slice)
                and self._is_list(node.value)
                and self._is_structure(node.slice)
            )
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in COUNTS
            and node.func.id != "range"
        ):
            return all(self._is_list(argument) or self._is_structure(argument) for argument in node.args)
        return isinstance(node, ast.ListComp) or (isinstance(node, ast.Name) and node.id in self.lists)

    def check(self) -> None:
        """Add the switches to ``found``. Raises TraceError for what decides by anything else."""
        for node in self.nodes:
            if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
                self._test(node.test)
            elif isinstance(node, ast.BoolOp):
                for value in node.values[:-1]:
                    self._test(value)
            elif isinstance(node, (ast.For, ast.comprehension)):
                for test in getattr(node, "ifs", []):
                    self._test(test)
                if not (self._is_structure(node.iter) or self._is_list(node.iter)):
                    raise _undecided(node.iter)
            elif not self._is_plain(node):
                raise _undecided(node)

    def _is_plain(self, node: ast.AST) -> bool:
        """Whether ``node`` decides nothing, or by structure alone."""
        if isinstance(node, (ast.Try, ast.TryStar, ast.Match, ast.AsyncFor)):
            return False
        if isinstance(node, ast.With):
            return not any("suppress" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Attribute):
            return node.attr != "__dict__"
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            index = node.slice
            of_tensor = isinstance(index, ast.Tuple) and any(
                isinstance(n, ast.Slice) or _is_ellipsis(n) for n in index.elts
            )
            return of_tensor or self._is_structure(index)
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            if isinstance(node.func, ast.Name):
                return node.func.id not in REFUSED and (
                    node.func.id != "getattr" or self._is_structure(node.args[1])
                )
            return not (isinstance(node.func, ast.Attribute) and node.func.attr in PICKS) or all(
                map(self._is_structure, arguments)
            )
        return True

    def _test(self, test: ast.expr) -> None:
        if isinstance(test, ast.BoolOp):
            for value in test.values:
                self._test(value)
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self._test(test.operand)
        elif not self._is_structure(test):
            if (
                isinstance(test, ast.Compare)
                and isinstance(test.ops[0], (ast.Is, ast.IsNot))
                and _is_none(test.comparators)
            ):
                self._switch(test.left, "none", test)
            else:
                self._switch(test, "truth", test)

    def _switch(self, node: ast.expr, asked: str, test: ast.expr) -> None:
        if isinstance(node, ast.Attribute) and self._is_mine(node):
            if asked == "none" and node.attr in {**self.module._parameters, **self.module._buffers}:
                return
            now = inspect.getattr_static(self.module, node.attr, self)
            name = f"self.{node.attr}"
        elif isinstance(node, ast.Name) and node.id in self.optional:
            now, name = self.optional[node.id], node.id
            if not (now is None or (isinstance(now, bool) and asked == "truth")):
                raise _undecided(test)
        else:
            raise _undecided(test)
        if not (now is None or isinstance(now, (bool, int, float, str))):
            raise _undecided(test)
        self.found.setdefault(name, set()).add(asked)
        if isinstance(now, bool) and asked == "none":
            self.found[name].add("truth")


def _is_none(nodes: list[ast.expr]) -> bool:
    return len(nodes) == 1 and isinstance(nodes[0], ast.Constant) and nodes[0].value is None


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value in (None, ...)
