"""Whether a checkout's step is a known one, by the source of every method that it runs.

Two iterations beside ours show what a step does, not what it will do after a thousand, and not what it does
beside training: print, count, keep averages. So each method must be a version that somebody has read, and
the distances torch's own. What these add up to is left to the comparison. Methods outside the step, such as
``set_input``, may be anything.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from torch import nn

from fastcyclegan.nn.layer_checks import has_hooks, untouched

# What hash_of gives for the methods of a CycleGANModel, its GANLoss and its ImagePools, and the years in
# which upstream had them: read in its history from May 2018, the first with one optimizer_D that today's
# Python can import, to 2022, and for 2025 in forks of it, but for ImagePool. "tests" is the package in
# tests/official/checkout, which has the same structure and a text of its own.
_QUERY, _ONE = {"7ba14fe1cbb4c7ab": "2018-22", "717dc0eb55075693": "tests"}, {"a2a38be7c866c607": "tests"}
KNOWN: dict[str, dict[str, str]] = {
    "optimize_parameters": {
        "4ea38ec69d72f5cc": "May 2018",
        "3be1261b794bbf0c": "2018-25",
        "ee6e9755768811f3": "tests",
    },
    "forward": {"65be1f6cd4c04957": "2018-25, tests"},
    "backward_G": {"379302b8ecd1b5c1": "2018-25", "61cb7a1ecf02c4e5": "tests"},
    "backward_D_basic": {"7032c4058b98813f": "2018-25", "a904584782b6ed03": "tests"},
    "backward_D_A": {"c7bd68db841b56cd": "2018-25"},
    "backward_D_B": {"941d5c45dc54f033": "2018-25"},
    "set_requires_grad": {"82267af5480e067d": "2018-25", "887ca2923cb5540e": "tests"},
    "criterionGAN.__call__": {"2594f36912761937": "2018", "0ba3adf4c72e4269": "2019-25"},
    "criterionGAN.forward": {"5dd884974362ba36": "tests"},
    "criterionGAN.get_target_tensor": {"d9815e98db57f617": "2018", "9ded381008cfade5": "2019-25"},
    "fake_A_pool.query": _QUERY,
    "fake_B_pool.query": _QUERY,
    "fake_A_pool.one": _ONE,
    "fake_B_pool.one": _ONE,
}


class _Plain(ast.NodeTransformer):
    """Drops docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if ast.get_docstring(node) is not None:
            del node.body[0]
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def hash_of(source: str) -> str:
    """Return 16 hex digits for the function ``source``, whatever its comments, docstring, annotations and
    layout are, and whatever Python runs this.
    """
    plain = ast.unparse(_Plain().visit(ast.parse(textwrap.dedent(source))))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def methods_of(model: Any) -> dict[str, Any]:
    """Return the methods of the step of ``model`` as Python finds them, by their paths in KNOWN; None for one
    that it lacks or has from torch.
    """
    methods = {}
    for path in KNOWN:
        part, _, name = path.rpartition(".")
        owner = getattr(model, part, None) if part else model
        method = getattr(owner, "__dict__", {}).get(name, getattr(type(owner), name, None))
        methods[path] = None if method is getattr(nn.Module, name, None) else method
    return methods


def why_not_public(model: Any, optimize: Callable[..., Any]) -> str:
    """Return "" where the step of ``model``, which is ``optimize`` and what it calls, is a known one, else
    why not, in the middle of a sentence.
    """
    for path, method in {**methods_of(model), "optimize_parameters": optimize}.items():
        if method is None:
            # A step that calls what is not there fails by itself, in the comparison.
            continue
        if path in vars(model) or not inspect.isfunction(method):
            return f"its {path} is no function of its class"
        try:
            # Of the code: a function may name another that it wraps, whose source is found instead.
            found = hash_of(inspect.getsource(method.__code__))
        except (OSError, SyntaxError, TypeError, ValueError):
            return f"the source of its {path} cannot be read"
        if found not in KNOWN[path]:
            return f"its {path} is of no version that is known here (hash {found})"
    for path in ("criterionCycle", "criterionIdt"):
        criterion = getattr(model, path, None)
        if not untouched(criterion, nn.L1Loss):
            return f"its {path}, a {type(criterion).__name__}, is no plain torch.nn.L1Loss"
    gan = getattr(model, "criterionGAN", None)
    if not isinstance(gan, nn.Module) or has_hooks(gan):
        return f"its criterionGAN, a {type(gan).__name__}, has hooks or is no torch.nn.Module"
    loss = getattr(gan, "loss", None)
    if loss is not None and not untouched(loss, nn.MSELoss, nn.BCEWithLogitsLoss):
        return f"its criterionGAN.loss, a {type(loss).__name__}, is no plain MSELoss or BCEWithLogitsLoss"
    return ""
