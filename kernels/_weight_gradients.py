"""Where the gradients of weights and biases go: to autograd as tensors of their own, or in place to the
``.grad`` that is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def each_weight(x: Tensor, *lists: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield each weight's share of the images of x, and its entry of each list."""
    count = len(lists[0])
    shares = x.chunk(count) if x.shape[0] else [x] * count
    yield from zip(shares, *lists, strict=True)


_accumulating = False


@contextlib.contextmanager
def accumulating() -> Iterator[None]:
    """Inside the block, backward passes add weight gradients to ``.grad`` in place where there is one
    already.

    For ``loss.backward()`` where weights are used more than once, as a generator's are: autograd would hold
    each gradient and add it in a pass of its own. It serves weights that are leaves, whose ``.grad`` this
    backward is to fill, in eager mode, and that have no hooks; all others are left to autograd, so what it
    gives is the same. Hooks on the node that accumulates a gradient are not seen: not for
    DistributedDataParallel, which has such. It holds for every thread of the process.
    """
    global _accumulating
    before, _accumulating = _accumulating, True
    try:
        yield
    finally:
        _accumulating = before


def is_accumulating() -> bool:
    """Whether a backward pass that runs now may add to ``.grad`` in place; see ``accumulating``."""
    return _accumulating and not torch.compiler.is_compiling() and not torch.is_grad_enabled()


def gradients_to_add_to(weights: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor] | None:
    """Return the ``.grad`` of each weight that needs a gradient if all are there to be added to in place,
    else None.
    """
    if not is_accumulating():
        return None
    found = []
    for weight, need in zip(weights, needs, strict=True):
        if not need:
            continue
        if not weight.is_leaf or weight._backward_hooks or weight._post_accumulate_grad_hooks:
            return None
        grad = weight.grad
        if grad is None or grad.requires_grad or grad.stride() != weight.stride():
            return None
        if not _to_be_filled(weight):
            return None
        found.append(grad)
    return found


def _to_be_filled(leaf: Tensor) -> bool:
    """Whether the backward that runs is to end in ``leaf.grad``: not where it was called for other inputs, or
    by torch.autograd.grad.
    """
    with torch.enable_grad():
        node = torch.autograd.graph.get_gradient_edge(leaf).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return False


def spread(dweight: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return a gradient for each weight, views of ``dweight`` [R, ...] in order, None where none is
    needed."""
    gradients = iter(dweight.unbind(0))
    found: list[Tensor | None] = []
    for need in needs:
        found.append(next(gradients) if need else None)
    return found


def spread_bias(dbias: Tensor, biases: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return a gradient for each of P biases, rows of ``dbias`` [P, O]; None where none is needed, or it was
    added in place.
    """
    from ._weights import stride_between

    if biases and all(needs):
        into = gradients_to_add_to(biases, needs)
        step = None if into is None else stride_between(into)
        if into is not None and step is not None:
            into[0].as_strided(dbias.shape, (step, 1)).add_(dbias)
            return [None] * len(biases)
    found: list[Tensor | None] = []
    for p, (bias, need) in enumerate(zip(biases, needs, strict=True)):
        found.append(dbias[p].to(bias.dtype) if need else None)
    return found
