"""Fall back to PyTorch if a kernel of an operator fails, and warn once.

Does not import Triton.

Each operator has a twin in ``_plain.py``: a function with the same name and signature that needs no kernels.
If a kernel fails, the properties of the call that determine its launches (dtypes, shapes, layouts and
scalars) are remembered, so that later calls with the same properties do not try to compile again. If Triton
was required, the error is raised instead, and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._failures import KernelError, report
from ._overlap import on_side_stream

CONSEQUENCE = "PyTorch computes the layers that need it from here on"
# Keys of the calls that fall back to PyTorch.
_fallen: set[tuple[Any, ...]] = set()


def _launch_key(value: Any) -> Any:
    """Return the properties of an argument that determine the launches, for use in a key."""
    if isinstance(value, Tensor):
        return value.dtype, value.device, tuple(value.shape), value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(map(_launch_key, value))
    return value


def run_or_fall_back(
    op: str, run: Callable[..., Any], plain: Callable[..., Any], args: Iterable[Any], required: bool
) -> Any:
    """Return ``run(*args)``, or ``plain(*args)`` if a kernel fails now or failed in a similar call before.

    ``run`` launches the kernels of ``op``, and must not change anything before its last launch. If
    ``required`` is true, a kernel that fails raises KernelError, and ``plain`` is not used.
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
    """Return the function that computes operator ``op`` with PyTorch's own operators."""
    from . import _plain

    def compute(*args: Any) -> Any:
        # Autocast was applied earlier, so the arguments already have the dtypes to compute in.
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
    """Run backward operator ``op`` on ``args``, and add its weight gradients to ``into`` in place.

    Returns the other results. There is one weight gradient for each tensor in ``into``. ``backward()`` does
    all this with the kernels. If a kernel fails, the operator's twin is used, and its gradients are added on
    the same stream and at the same point as the kernels would have added theirs. If ``required`` is true,
    the failure raises KernelError instead.
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
