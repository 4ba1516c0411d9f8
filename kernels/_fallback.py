"""Let PyTorch compute an operator if one of its kernels fails, and report that once.

Does not import Triton.

Each operator has a twin with the same name and signature in ``_plain.py``. A call whose kernel failed is
remembered by everything that determines its launches (dtypes, shapes, layouts and scalars), so that similar
calls do not try to compile again. If Triton was required, the error is raised instead, and nothing is
remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._failures import KernelError, report
from ._overlap import on_side_stream

CONSEQUENCE = "PyTorch computes the layers that need it from here on"
# The calls that fall back to PyTorch.
_fallen: set[tuple[Any, ...]] = set()


def _launch_key(value: Any) -> Any:
    """Return the properties of an argument that determine what is launched, for use in a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(value.shape), value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(map(_launch_key, value))
    return value


def run_or_fall_back(
    op: str, run: Callable[..., Any], plain: Callable[..., Any], args: Iterable[Any], required: bool
) -> Any:
    """Return ``run(*args)``, or ``plain(*args)`` if a kernel of ``op`` fails now or failed before.

    ``run`` launches the kernels and must not change anything before its last launch. If the kernels are
    ``required``, one that fails raises KernelError.
    """
    args = tuple(args)
    if required:
        return run(*args)
    if _fallen and (op, *map(_launch_key, args)) in _fallen:
        return plain(*args)
    try:
        return run(*args)
    except KernelError as error:
        report(error, op[: -len("_fwd")], CONSEQUENCE)
        _fallen.add((op, *map(_launch_key, args)))
    # Outside the handler, because the error keeps alive everything that ``run`` had allocated.
    return plain(*args)


def twin(op: str) -> Callable[..., Any]:
    """Return the function that computes operator ``op`` in PyTorch."""
    from . import _plain

    def compute(*args: Any) -> Any:
        # The arguments already have the dtypes to compute in: autocast was applied before.
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
    """Return the results of operator ``op`` on ``args`` without the weight gradients [R, ...].

    The weight gradients are added in place to ``into``, R tensors. ``backward()`` does this with the kernels.
    If one of them fails, the twin's gradients are added where and when the kernels would have added theirs.
    """

    def run(*_: Any) -> tuple[Tensor, ...]:
        return backward()

    def plain(*args: Any) -> tuple[Tensor, ...]:
        dx, dweight, *others = twin(op)(*args)
        with on_side_stream(dweight):
            for target, gradient in zip(into, dweight.unbind(0), strict=True):
                target.add_(gradient)
        return (dx, *others)

    results: tuple[Tensor, ...] = run_or_fall_back(op, run, plain, args, required)
    return results
