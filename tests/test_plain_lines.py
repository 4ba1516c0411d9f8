"""No clever line: what ruff has no rule for, read off the syntax trees of what ships and of the benches."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Device code has rules of its own: kernels/README.md.
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
    found: Path = request.param
    return found


def is_condition(node: ast.expr) -> bool:
    """Whether ``node`` is a truth value by its form."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("bool", "isinstance", "any", "all")
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def is_literal(node: ast.expr) -> bool:
    """Whether ``node`` is a text, a number or a list as it is written down."""
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, bool)
    return isinstance(node, (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict))


def test_a_ternary_stands_alone(file: Path) -> None:
    """In no other one, and with at most one beside it in its line."""
    ternaries = [node for node in ast.walk(tree(file)) if isinstance(node, ast.IfExp)]
    for ternary in ternaries:
        inner = [node for node in ast.walk(ternary) if isinstance(node, ast.IfExp)]
        assert len(inner) == 1, f"line {ternary.lineno}: a ternary in a ternary"
    crowded = [line for line, count in Counter(node.lineno for node in ternaries).items() if count > 2]
    assert not crowded, f"lines {crowded}: three ternaries"


def test_nothing_is_multiplied_by_a_condition(file: Path) -> None:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            for value, factor in ((node.left, node.right), (node.right, node.left)):
                assert not (is_literal(value) and is_condition(factor)), f"line {node.lineno}: write an if"


def test_and_or_or_give_truth_values(file: Path) -> None:
    """``x or "none"`` is an if statement."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.BoolOp):
            values = [value for value in node.values if is_literal(value)]
            assert not values, f"line {node.lineno}: {ast.unparse(node)}"


def test_comprehensions_have_two_clauses_at_most(file: Path) -> None:
    """A loop and a condition, or two loops."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for node in ast.walk(tree(file)):
        if isinstance(node, kinds):
            clauses = sum(1 + len(generator.ifs) for generator in node.generators)
            assert clauses <= 2, f"line {node.lineno}: {ast.unparse(node)}"


def test_functions_are_short(file: Path) -> None:
    """Without their signatures, docstrings and the functions inside them."""
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


def test_no_private_name_crosses_a_file(file: Path) -> None:
    """A name with an underscore is its module's own; modules with one are a room's."""
    for node in ast.walk(tree(file)):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = "." * node.level + str(node.module or "")
        if not re.match(r"\.|fastcyclegan|bench", module):
            continue
        folder = (
            file.parent
            if node.level
            else ROOT / module.replace(".", "/").replace("fastcyclegan/kernels", "kernels")
        )
        for alias in node.names:
            is_module = (folder / f"{alias.name}.py").exists()
            assert is_module or not re.match("_[^_]", alias.name), f"line {node.lineno}: {alias.name}"


def test_classes_are_not_changed_when_modules_are_finished(file: Path) -> None:
    """But where ``accelerate`` lives by it: it takes up networks that others have made."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Assign):
            targets = {target.attr for target in node.targets if isinstance(target, ast.Attribute)}
            assert "__class__" not in targets or file.name == "accelerate.py", f"line {node.lineno}"
