"""Register operators with PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ._fallback import run_or_fall_back, twin

# The Python function of every operator, by qualified name, for tools that count the operations inside it.
BODIES: dict[str, Callable[..., Any]] = {}


def operator(schema: str, check: Callable[..., None] | None = None) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function, which has no side effects, as ``fastcyclegan::<its name>``.

    The last argument of ``schema``, ``bool required``, is not passed to the function. If it is true, a kernel
    that fails raises KernelError. If it is false, the function's twin in ``_plain.py`` computes the operator
    in PyTorch instead. The compiler must keep the strides of the inputs exactly, because the result has the
    layout of x.

    ``check``, which is called first with the function's arguments, raises an error if the kernels would read
    them wrongly. It belongs to the operator, and not to the functions that call it, because our networks, and
    networks that torch.jit.trace saved, call the operator directly. Its shape function must call it too.
    """

    def register(body: Callable[..., Any]) -> Any:
        name = f"fastcyclegan::{body.__name__}"

        @functools.wraps(body)
        def guarded(*args: Any) -> Any:
            *arguments, required = args
            if check is not None:
                check(*arguments)
            return run_or_fall_back(
                body.__name__, body, lambda *args: twin(body.__name__)(*args), arguments, required
            )

        BODIES[name] = guarded
        return torch.library.custom_op(
            name, guarded, mutates_args=(), schema=schema, tags=(torch.Tag.needs_exact_strides,)
        )

    return register


def refuse_double_backward(op: str) -> Callable[..., None]:
    """Return a double backward for ``op`` that raises RuntimeError: the kernels do not support one."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{op}: the Triton kernels do not support double backward (a gradient penalty needs it); use"
            " impl='reference'"
        )

    return refuse
