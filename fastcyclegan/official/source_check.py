"""Check whether a checkout's training step is a known version, by the source of every method that it runs.

Comparing two iterations with our step shows what the checkout's step does now. It does not show what the step
will do after a thousand iterations, nor its side effects: printing, counting, keeping averages. So every
method must be a version whose source has been read, and the distance functions in the losses must be torch's
own. Whether these methods together compute the same as our step is left to the comparison in
``equivalence.py``. Methods outside the step, such as ``set_input``, are not checked.
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

# The hashes (hash_of) of the methods of a CycleGANModel, its GANLoss and its ImagePools, and the years in
# which the official code had them. Those up to 2022 were read from its history, beginning in May 2018 with
# the first version that has a single optimizer_D and that today's Python can import. Those of 2025 were read
# from forks, except for ImagePool. "tests" stands for the package in tests/official/checkout, which has the
# same structure but was written separately.
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
    """A transformer that removes docstrings and annotations."""

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
    """Return a hash of the function in ``source``, as 16 hex digits.

    It does not depend on comments, docstrings, annotations or formatting, nor on the version of Python.
    """
    plain = ast.unparse(_Plain().visit(ast.parse(textwrap.dedent(source))))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def methods_of(model: Any) -> dict[str, Any]:
    """Return a dict from each path in KNOWN to the method of ``model``'s step that Python resolves it to.

    The value is None if the model does not have the method or inherits it from ``nn.Module``.
    """
    methods = {}
    for path in KNOWN:
        part, _, name = path.rpartition(".")
        owner = getattr(model, part, None) if part else model
        method = getattr(owner, "__dict__", {}).get(name, getattr(type(owner), name, None))
        methods[path] = None if method is getattr(nn.Module, name, None) else method
    return methods


def why_not_known(model: Any, optimize: Callable[..., Any]) -> str:
    """Return the reason why the step of ``model`` is not a known version, as part of a sentence.

    Returns "" if it is a known version. The step consists of ``optimize`` and the methods that it calls.
    """
    for path, method in {**methods_of(model), "optimize_parameters": optimize}.items():
        if method is None:
            # A step that calls a missing method fails in the comparison.
            continue
        if path in vars(model) or not inspect.isfunction(method):
            return f"its {path} is not an ordinary method of its class"
        try:
            # Read the source of the code object, because inspect would follow a wrapper to the function that
            # it wraps.
            digest = hash_of(inspect.getsource(method.__code__))
        except (OSError, SyntaxError, TypeError, ValueError):
            return f"the source of its {path} cannot be read"
        if digest not in KNOWN[path]:
            return f"its {path} is not a known version (hash {digest})"
    for path in ("criterionCycle", "criterionIdt"):
        criterion = getattr(model, path, None)
        if not untouched(criterion, nn.L1Loss):
            return f"its {path}, a {type(criterion).__name__}, is not a plain torch.nn.L1Loss"
    gan = getattr(model, "criterionGAN", None)
    if not isinstance(gan, nn.Module) or has_hooks(gan):
        return f"its criterionGAN, a {type(gan).__name__}, has hooks or is not a torch.nn.Module"
    loss = getattr(gan, "loss", None)
    if loss is not None and not untouched(loss, nn.MSELoss, nn.BCEWithLogitsLoss):
        return f"its criterionGAN.loss, a {type(loss).__name__}, is not a plain MSELoss or BCEWithLogitsLoss"
    return ""
