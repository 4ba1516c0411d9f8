"""Weights as the kernels read them, rounded and stacked once and kept from one use to the next.

An operator takes weights as they are, in fp32 and each by itself, and rounds and stacks them for every use.
Whoever changes them seldom and uses them often, as a training step does, keeps copies here: ``refresh`` makes
all of them in one pass, and operators that are handed the very weights take the copies instead. Weights that
changed since (PyTorch counts changes) are rounded anew: a copy is never out of date.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_places: weakref.WeakValueDictionary[tuple[int, torch.dtype], _Group] = weakref.WeakValueDictionary()
_stacks: weakref.WeakValueDictionary[int, _Group] = weakref.WeakValueDictionary()


class _Group:
    """P weights [A, B, KH, KW] that are used together, and their stack [P, A, KH, KW, B]; of vectors, [P,
    A]."""

    def __init__(self, weights: Sequence[Tensor], stack: Tensor) -> None:
        self.weights, self.stack = list(weights), stack
        self.addresses = [w.data_ptr() for w in weights]
        self.versions: list[int] | None = None
        self.forms: dict[tuple[str, int, int], Tensor] = {}
        self.fresh: set[tuple[str, int, int]] = set()
        _stacks.update((one.data_ptr(), self) for one in stack)


def _alike(group: Sequence[Tensor]) -> bool:
    """Return whether a group has weights, all of one shape."""
    return len(group) > 0 and all(w.shape == group[0].shape for w in group)


def _stack_in(memory: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the stack of ``weights``, unwritten, at the beginning of ``memory``."""
    A, *rest = weights[0].shape
    used = memory[: len(weights) * weights[0].numel()]
    return used.view(len(weights), A, *rest[1:], *rest[:1])


class WorkingCopies:
    """Copies in ``dtype`` of ``groups`` of weights [A, B, KH, KW] (or vectors), each a list of P alike, one
    for each of P networks.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        if not groups or not all(map(_alike, groups)):
            raise ValueError(
                "WorkingCopies: groups must be lists of at least one weight, all of a list of one shape"
            )
        whole = 16 // dtype.itemsize
        # Kernels load 16 bytes at a time from where that is a multiple of 16.
        sizes = [-(-len(weights) * weights[0].numel() // whole) * whole for weights in groups]
        memory = torch.empty(sum(sizes), dtype=dtype, device=groups[0][0].device)
        self.groups: list[_Group] = []
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []
        for weights, part in zip(groups, memory.split(sizes), strict=True):
            group = _Group(weights, _stack_in(part, weights))
            self.groups.append(group)
            for address in group.addresses:
                _places[address, dtype] = group
            self._sources.extend(w.detach() for w in weights)
            # As the weights lie: [A, B, KH, KW], or vectors as they are.
            stack = group.stack.permute(0, 1, 4, 2, 3) if group.stack.dim() == 5 else group.stack
            self._targets.extend(stack)

    def refresh(self) -> None:
        """Make the copies anew."""
        torch._foreach_copy_(self._targets, self._sources)
        for group in self.groups:
            group.versions = [w._version for w in group.weights]
            group.fresh = set()

    def forget(self) -> None:
        """Let nobody use the copies until they are made anew: the weights may have changed where PyTorch does
        not count (a graph).
        """
        for group in self.groups:
            group.versions, group.fresh = None, set()


def working_copy(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Return the stack [P, A, KH, KW, B] of ``weights`` in ``dtype`` if there is one that is up to date, else
    None.
    """
    if not _places:
        return None
    first = weights[0].data_ptr()
    group = _places.get((first, dtype))
    if group is None or group.versions is None:
        return None
    start = group.addresses.index(first)
    mine = slice(start, start + len(weights))
    if weights[0].shape != group.weights[0].shape:
        return None
    if group.addresses[mine] != [w.data_ptr() for w in weights]:
        return None
    if group.versions[mine] != [w._version for w in weights]:
        return None
    return group.stack[mine]


def form_of(stack: Tensor, name: str, make: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """Return ``make(stack, None)``, another form of the stack; of a working copy once until it is made anew.

    Then ``make`` is handed what it returned the last time, to write it again.
    """
    group = _stacks.get(stack.data_ptr())
    if group is None or group.versions is None:
        return make(stack, None)
    if stack.dtype != group.stack.dtype or stack.shape[1:] != group.stack.shape[1:]:
        return make(stack, None)
    key = (name, stack.data_ptr(), stack.shape[0])
    if key not in group.fresh:
        group.forms[key] = make(stack, group.forms.get(key))
        group.fresh.add(key)
    return group.forms[key]
