"""What an operator does when one of its kernels fails: PyTorch computes it from then on, and that is reported
once. Imports no Triton.

Each operator has a twin of the same name and signature in ``_plain.py``. A call whose kernel failed is
remembered by all that decides what is launched (dtypes, shapes, layouts and scalars), so that later ones like
it do not try to compile again. Where Triton was required the error is raised instead, and nothing is
remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._failures import KernelError, report
from ._overlap import beside

CONSEQUENCE = "PyTorch computes the layers that need it from here on"
# Calls that PyTorch computes.
_fallen: set[tuple[Any, ...]] = set()


def _kind(value: Any) -> Any:
    """Return what of an argument decides what is launched, as part of a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(value.shape), value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    return value


def or_plain(
    op: str, run: Callable[..., Any], plain: Callable[..., Any], args: Iterable[Any], required: bool
) -> Any:
    """Return ``run(*args)``, by the kernels of ``op``; ``plain(*args)`` where one fails or failed before,
    unless they are ``required``.

    ``run`` must change nothing before its last launch. Raises KernelError where the kernels are required.
    """
    args = tuple(args)
    if required:
        return run(*args)
    if _fallen and (op, *map(_kind, args)) in _fallen:
        return plain(*args)
    try:
        return run(*args)
    except KernelError as error:
        report(error, op[: -len("_fwd")], CONSEQUENCE)
        _fallen.add((op, *map(_kind, args)))
    # Out of the handler: the error holds all that the kernels' way had allocated.
    return plain(*args)


def twin(op: str) -> Callable[..., Any]:
    """Return what computes operator ``op`` by PyTorch, as it does."""
    from . import _plain

    def compute(*args: Any) -> Any:
        # Dtypes are those of the arguments: autocast, where it is on, was heeded before.
        with torch.autocast(args[0].device.type, enabled=False):
            return getattr(_plain, op)(*args)

    return compute


def backward_in_place(
    op: str,
    backward: Callable[[], tuple[Tensor, ...]],
    args: tuple[Any, ...],
    into: Sequence[Tensor],
    required: bool,
) -> tuple[Tensor, ...]:
    """Return what operator ``op`` does of ``args`` but its weight gradients [R, ...], which are added to
    ``into``: R tensors, in place.

    By ``backward()``, else by the twin, whose gradients are added where and when the kernels would have added
    theirs.
    """

    def run(*_: Any) -> tuple[Tensor, ...]:
        return backward()

    def plain(*args: Any) -> tuple[Tensor, ...]:
        dx, dweight, *others = twin(op)(*args)
        with beside(dweight):
            for target, gradient in zip(into, dweight.unbind(0), strict=True):
                target.add_(gradient)
        return (dx, *others)

    found: tuple[Tensor, ...] = or_plain(op, run, plain, args, required)
    return found
