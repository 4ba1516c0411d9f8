"""Return the gradients of weights and biases to autograd, or add them in place to an existing ``.grad``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def each_weight(x: Tensor, *lists: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield one tuple per weight: its share of the images of x, then its entry in each of ``lists``."""
    count = len(lists[0])
    # The gradient of a chunk is a copy, so one share is x itself.
    shares = x.chunk(count) if x.shape[0] and count > 1 else [x] * count
    yield from zip(shares, *lists, strict=True)


_accumulating = False


@contextlib.contextmanager
def accumulating() -> Iterator[None]:
    """Let backward passes inside the block add weight gradients in place to an existing ``.grad``.

    Use it around ``loss.backward()`` if weights are used more than once, as a generator's are. Otherwise
    autograd would keep each gradient and add it in a separate pass. Only leaf weights are affected, and only
    if they have no hooks and the backward fills their ``.grad``, in eager mode. Other gradients are left to
    autograd, so the results are the same. Hooks on the node that accumulates a gradient are not detected, so
    do not use this with DistributedDataParallel, which has such hooks. The block affects every thread of the
    process.
    """
    global _accumulating
    before, _accumulating = _accumulating, True
    try:
        yield
    finally:
        _accumulating = before


def is_accumulating() -> bool:
    """Return whether the current backward pass may add to ``.grad`` in place; see ``accumulating``."""
    return _accumulating and not torch.compiler.is_compiling() and not torch.is_grad_enabled()


def gradients_to_add_to(weights: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor] | None:
    """Return the ``.grad`` of each weight for which ``needs`` is true, to add a gradient to it in place.

    Returns None unless all of these tensors exist and allow that.
    """
    if not is_accumulating():
        return None
    targets = []
    for weight, need in zip(weights, needs, strict=True):
        if not need:
            continue
        if not weight.is_leaf or weight._backward_hooks or weight._post_accumulate_grad_hooks:
            return None
        grad = weight.grad
        if grad is None or grad.requires_grad or grad.stride() != weight.stride():
            return None
        if not _will_be_filled(weight):
            return None
        targets.append(grad)
    return targets


def _will_be_filled(leaf: Tensor) -> bool:
    """Return whether the running backward pass fills ``leaf.grad``.

    It does not if it was started for other inputs, or by torch.autograd.grad.
    """
    with torch.enable_grad():
        node = torch.autograd.graph.get_gradient_edge(leaf).node
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:
        return False


def spread(dweight: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradient of each weight as a view of ``dweight``, or None for weights that need no gradient.

    ``dweight`` [R, ...] contains the gradients of the R weights that need one, in order.
    """
    views = iter(dweight.unbind(0))
    gradients: list[Tensor | None] = []
    for need in needs:
        gradients.append(next(views) if need else None)
    return gradients


def spread_bias(dbias: Tensor, biases: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradient of each bias, a row of ``dbias`` [P, O], or add it in place and return None.

    The entry of a bias that needs no gradient is also None.
    """
    from ._weights import stride_between

    if biases and all(needs):
        into = gradients_to_add_to(biases, needs)
        step = None if into is None else stride_between(into)
        if into is not None and step is not None:
            into[0].as_strided(dbias.shape, (step, 1)).add_(dbias)
            return [None] * len(biases)
    gradients: list[Tensor | None] = []
    for p, (bias, need) in enumerate(zip(biases, needs, strict=True)):
        gradients.append(dbias[p].to(bias.dtype) if need else None)
    return gradients
