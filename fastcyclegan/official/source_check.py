"""Whether the source of a checkout's step uses only what the public one of 2017-25 does, so that what it did
once it does always.

Two iterations beside ours show what a step does, not what it will do after a thousand, and not what it does
beside training: print, count, keep averages. So everything in it must have one of the few shapes below, of
which none depends on time: calls of networks, criterions, pools and optimizers, sums and products of their
results and of the weights in ``opt``, and one condition, on the identity loss. What these shapes add up to is
left to the comparison. ``set_input`` runs as it is, whatever it does, and so do all methods outside the step.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

METHODS = (
    "optimize_parameters",
    "forward",
    "backward_G",
    "backward_D_basic",
    "backward_D_A",
    "backward_D_B",
    "set_requires_grad",
)
_SIDES = ("A", "B")
_WRITTEN = {f"{kind}_{side}" for kind in ("fake", "rec", "idt") for side in _SIDES}
_WRITTEN |= {f"loss_{kind}_{side}" for kind in ("D", "G", "cycle", "idt") for side in _SIDES} | {"loss_G"}
_CALLED = {"netG_A", "netG_B", "netD_A", "netD_B", "criterionGAN", "criterionCycle", "criterionIdt"}
_POOLS, _OPTIMIZERS = {"fake_A_pool", "fake_B_pool"}, {"optimizer_G", "optimizer_D"}
_READ = _WRITTEN | _CALLED | {"real_A", "real_B", "opt"}
_WEIGHTS = {"lambda_A", "lambda_B", "lambda_identity"}
_IDENTITY = {
    f"{name} > {zero}"
    for name in ("lambda_idt", "opt.lambda_identity", "self.opt.lambda_identity")
    for zero in ("0", "0.0")
}
# What the condition on the identity loss reads must be that.
_MEANT = {"opt": {"self.opt"}, "lambda_idt": {"opt.lambda_identity", "self.opt.lambda_identity"}}
_FREEZING = {"not isinstance(nets, list)", "net is not None"}


class _OtherError(Exception):
    """A construct that the public step has not. The message is the construct."""


def why_not_public(model: Any, optimize: Callable[..., Any]) -> str:
    """Return "" where the step of ``model``, ``optimize`` and what it calls, is made of the public step's
    shapes, else why not.
    """
    for name in METHODS:
        function = optimize if name == "optimize_parameters" else getattr(type(model), name, None)
        if name in vars(model):
            return f"its {name} is not that of its class"
        if function is None:
            # A step that calls what is not there fails by itself, in the comparison.
            continue
        try:
            _Method(name, _parsed(function)).check()
        except (OSError, TypeError, SyntaxError, ValueError):
            return f"the source of its {name} cannot be read"
        except _OtherError as construct:
            return f"its {name} has `{construct}`, which the public one has not"
    return ""


def _parsed(function: Any) -> ast.FunctionDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    if not isinstance(node, ast.FunctionDef):
        raise TypeError
    return node


def _other(node: ast.AST) -> _OtherError:
    """Return the error that shows ``node``, in one line."""
    line = ast.unparse(node).strip().splitlines()[0].removesuffix(":")
    return _OtherError(line if len(line) <= 80 else f"{line[:77]}...")


def _value_of(statement: ast.stmt) -> str:
    value = getattr(statement, "value", None)
    return ast.unparse(value) if isinstance(value, ast.expr) else ""


class _Method:
    """The check of one method."""

    def __init__(self, name: str, node: ast.FunctionDef) -> None:
        self.name, self.node = name, node
        self.freezes = name == "set_requires_grad"
        self.locals = {argument.arg for argument in node.args.args} - {"self"}

    def check(self) -> None:
        """Raise _OtherError for the first construct that the public method has not."""
        node, args = self.node, self.node.args
        for decorator in node.decorator_list:
            raise _OtherError(f"@{ast.unparse(decorator)}")
        if (
            node.name != self.name
            or args.vararg
            or args.kwarg
            or args.kwonlyargs
            or not all(isinstance(d, ast.Constant) for d in args.defaults)
        ):
            raise _OtherError(f"def {node.name}({ast.unparse(args)})")
        *body, last = node.body
        self.statements(body)
        if isinstance(last, ast.Return):
            if last.value is not None:
                self.value(last.value)
        else:
            self.statements([last])

    def statements(self, nodes: Iterable[ast.stmt]) -> None:
        for node in nodes:
            match node:
                case ast.Pass() | ast.Expr(value=ast.Constant()):
                    pass
                case ast.Expr(value=ast.Call() as call):
                    self.call(call)
                case ast.Assign(targets=targets, value=value):
                    self.value(value)
                    for target in targets:
                        self.target(target, node)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self.value(value)
                    self.target(target, node)
                case ast.If(test=test, body=body, orelse=otherwise) if ast.unparse(test) in (
                    _FREEZING if self.freezes else _IDENTITY
                ):
                    self.statements([*body, *otherwise])
                case ast.For(target=ast.Name(name), iter=over, body=body, orelse=[]) if self.freezes:
                    self.value(over)
                    self.locals.add(name)
                    self.statements(body)
                case _:
                    raise _other(node)

    def target(self, node: ast.expr, statement: ast.stmt) -> None:
        match node:
            case ast.Name(name) if name != "self" and (
                name not in _MEANT or _value_of(statement) in _MEANT[name]
            ):
                self.locals.add(name)
            case ast.Attribute(value=ast.Name("self"), attr=name) if name in _WRITTEN and not self.freezes:
                pass
            case ast.Attribute(value=ast.Name("param"), attr="requires_grad") if self.freezes:
                pass
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.target(part, statement)
            case _:
                raise _other(statement)

    def value(self, node: ast.expr) -> None:
        match node:
            case ast.Constant():
                pass
            case ast.Name(name) if name in self.locals:
                pass
            case ast.Attribute(value=ast.Name("self"), attr=name) if name in _READ:
                pass
            case ast.Attribute(value=ast.Name() | ast.Attribute() as owner, attr=name) if name in _WEIGHTS | {
                "data"
            }:
                self.value(owner)
            case ast.BinOp(left=left, op=ast.Add() | ast.Mult(), right=right):
                self.value(left)
                self.value(right)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                for part in parts:
                    self.value(part)
            case ast.Call():
                self.call(node)
            case _:
                raise _other(node)

    def call(self, node: ast.Call) -> None:
        if not self.calls_what_is_known(node):
            raise _other(node)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(argument)

    def calls_what_is_known(self, node: ast.Call) -> bool:
        match node.func:
            case ast.Name(name):
                return name in ("float", "Variable") or (name == "netD" and name in self.locals)
            case ast.Attribute(value=ast.Name("self"), attr=name):
                return name in _CALLED or name in METHODS[1:]
            case ast.Attribute(value=ast.Attribute(value=ast.Name("self"), attr=owner), attr=name) if (
                owner in _POOLS | _OPTIMIZERS
            ):
                return name in (("query",) if owner in _POOLS else ("zero_grad", "step"))
            case ast.Attribute(value=ast.Attribute(value=ast.Name("self"), attr=owner), attr="forward"):
                return owner in _CALLED
            case ast.Attribute(value=ast.Name("netD"), attr="forward"):
                return "netD" in self.locals
            case ast.Attribute(value=ast.Name(), attr="parameters"):
                return self.freezes
            case ast.Attribute(value=owner, attr=name) if name in ("backward", "detach", "item"):
                self.value(owner)
                return True
        return False
