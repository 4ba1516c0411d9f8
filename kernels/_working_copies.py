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


class WorkingCopies:
    """Copies in ``dtype`` of ``groups`` of weights [A, B, KH, KW] (or vectors), each a list of P alike, one
    for each of P networks.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        if not groups or any(not group or any(w.shape != group[0].shape for w in group) for group in groups):
            raise ValueError(
                "WorkingCopies: groups must be lists of at least one weight, all of a list of one shape"
            )
        first, whole = groups[0][0], 16 // dtype.itemsize
        # Kernels load 16 bytes at a time from where that is a multiple of 16.
        sizes = [-(-len(weights) * weights[0].numel() // whole) * whole for weights in groups]
        memory = torch.empty(sum(sizes), dtype=dtype, device=first.device)
        self.groups = []
        for weights, part in zip(groups, memory.split(sizes), strict=True):
            A, *rest = weights[0].shape
            stack = part[: len(weights) * weights[0].numel()].view(len(weights), A, *rest[1:], *rest[:1])
            group = _Group(weights, stack)
            self.groups.append(group)
            for address in group.addresses:
                _places[address, dtype] = group
        self._sources = [w.detach() for group in groups for w in group]
        self._targets = [
            one.permute(0, 3, 1, 2) if one.dim() == 4 else one for group in self.groups for one in group.stack
        ]

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
    same = group.addresses[mine] == [w.data_ptr() for w in weights] and group.versions[mine] == [
        w._version for w in weights
    ]
    return group.stack[mine] if same and weights[0].shape == group.weights[0].shape else None


def form_of(stack: Tensor, name: str, make: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """Return ``make(stack, None)``, another form of the stack; of a working copy once until it is made anew.

    Then ``make`` is handed what it returned the last time, to write it again.
    """
    group = _stacks.get(stack.data_ptr())
    if (
        group is None
        or group.versions is None
        or stack.dtype != group.stack.dtype
        or stack.shape[1:] != group.stack.shape[1:]
    ):
        return make(stack, None)
    key = (name, stack.data_ptr(), stack.shape[0])
    if key not in group.fresh:
        group.forms[key] = make(stack, group.forms.get(key))
        group.fresh.add(key)
    return group.forms[key]
