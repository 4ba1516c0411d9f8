"""Check style rules that ruff does not offer, on the syntax trees of the package, benches and scripts."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Device code has its own rules, see kernels/README.md.
FILES = [
    file
    for folder in ("fastcyclegan", "kernels", "bench", "scripts")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if not file.name.endswith("_triton.py") and not file.is_relative_to(ROOT / "fastcyclegan" / "kernels")
]
LONGEST = 40


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@pytest.fixture(params=FILES, ids=name_of)
def file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def is_condition(node: ast.expr) -> bool:
    """Return whether the syntax of ``node`` shows that it is a boolean."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("bool", "isinstance", "any", "all")
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def is_literal(node: ast.expr) -> bool:
    """Return whether ``node`` is a literal string, number, list, tuple or dict."""
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, bool)
    return isinstance(node, (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict))


def test_ternaries_are_not_nested_or_crowded(file: Path) -> None:
    """No ternary contains another one, and no line has more than two ternaries."""
    ternaries = [node for node in ast.walk(tree(file)) if isinstance(node, ast.IfExp)]
    for ternary in ternaries:
        inner = [node for node in ast.walk(ternary) if isinstance(node, ast.IfExp)]
        assert len(inner) == 1, f"line {ternary.lineno}: a nested ternary"
    crowded = [line for line, count in Counter(node.lineno for node in ternaries).items() if count > 2]
    assert not crowded, f"lines {crowded}: more than two ternaries"


def test_no_value_is_multiplied_by_a_condition(file: Path) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for value, factor in ((node.left, node.right), (node.right, node.left)):
                assert not (is_literal(value) and is_condition(factor)), (
                    f"line {node.lineno}: use an if statement"
                )


def test_and_and_or_only_combine_conditions(file: Path) -> None:
    """No literal is an operand of ``and`` or ``or``: instead of ``x or "none"``, write an if statement."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.BoolOp):
            values = [value for value in node.values if is_literal(value)]
            assert not values, f"line {node.lineno}: {ast.unparse(node)}"


def test_comprehensions_have_at_most_two_clauses(file: Path) -> None:
    """A comprehension can have a loop and a condition, or two loops, but no more."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for node in ast.walk(tree(file)):
        if isinstance(node, kinds):
            clauses = sum(1 + len(generator.ifs) for generator in node.generators)
            assert clauses <= 2, f"line {node.lineno}: {ast.unparse(node)}"


def test_functions_are_short(file: Path) -> None:
    """No function has more than LONGEST lines, not counting its signature, docstring and nested functions."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef):
            inner = sum(
                length(one) for one in ast.walk(node) if isinstance(one, ast.FunctionDef) and one is not node
            )
            assert length(node) - inner <= LONGEST, f"{node.name} has {length(node) - inner} lines"


def length(function: ast.FunctionDef) -> int:
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
        body = body[1:]
    last = function.end_lineno
    assert last is not None
    return last - body[0].lineno + 1


def test_private_names_are_not_imported(file: Path) -> None:
    """A name with an underscore is private to its module, and a module with an underscore to its room."""
    for node in ast.walk(tree(file)):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = "." * node.level + str(node.module or "")
        if not re.match(r"\.|fastcyclegan|bench", module):
            continue
        folder = (
            file.parents[node.level - 1]
            if node.level
            else ROOT / module.replace(".", "/").replace("fastcyclegan/kernels", "kernels")
        )
        for alias in node.names:
            is_module = (folder / f"{alias.name}.py").exists()
            assert is_module or not re.match("_[^_]", alias.name), f"line {node.lineno}: {alias.name}"


def test_only_accelerate_assigns_to_class(file: Path) -> None:
    """``accelerate`` has to assign to ``__class__``, because it changes networks that already exist."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Assign):
            targets = {target.attr for target in node.targets if isinstance(target, ast.Attribute)}
            assert "__class__" not in targets or file.name == "accelerate.py", f"line {node.lineno}"
