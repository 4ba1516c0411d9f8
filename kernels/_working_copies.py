"""Weights as the kernels read them, rounded and stacked once and kept from one use to the next.

An operator takes weights as they are, in fp32 and each by itself, and rounds and stacks them for every use. Whoever changes them seldom and
uses them often, as a training step does, keeps copies here: ``refresh`` makes all of them in one pass, and operators that are handed the
very weights take the copies instead. Weights that changed since (PyTorch counts changes) are rounded anew: a copy is never out of date.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

_places: weakref.WeakValueDictionary[tuple[int, torch.dtype], _Group] = weakref.WeakValueDictionary()


class _Group:
    """P weights [A, B, KH, KW] that are used together, and their stack [P, A, KH, KW, B]."""

    def __init__(self, weights: Sequence[Tensor], stack: Tensor) -> None:
        self.weights, self.stack = list(weights), stack
        self.addresses = [w.data_ptr() for w in weights]
        self.versions: list[int] | None = None


class WorkingCopies:
    """Copies in ``dtype`` of ``groups`` of weights, each a list of P alike, one for each of P networks."""

    def __init__(self, groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        first = groups[0][0]
        memory = torch.empty(sum(w.numel() for group in groups for w in group), dtype=dtype, device=first.device)
        self.groups, start = [], 0
        for weights in groups:
            A, B, KH, KW = weights[0].shape
            size = len(weights) * weights[0].numel()
            group = _Group(weights, memory[start : start + size].view(len(weights), A, KH, KW, B))
            self.groups.append(group)
            start += size
            for address in group.addresses:
                _places[address, dtype] = group
        self._sources = [w.detach() for group in groups for w in group]
        self._targets = [stack.permute(0, 3, 1, 2) for group in self.groups for stack in group.stack]

    def refresh(self) -> None:
        """Make the copies anew."""
        torch._foreach_copy_(self._targets, self._sources)
        for group in self.groups:
            group.versions = [w._version for w in group.weights]

    def forget(self) -> None:
        """Let nobody use the copies until they are made anew: the weights may have changed where PyTorch does not count (a graph)."""
        for group in self.groups:
            group.versions = None


def working_copy(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Return the stack [P, A, KH, KW, B] of ``weights`` in ``dtype`` if there is one that is up to date, else None."""
    if not _places:
        return None
    first = weights[0].data_ptr()
    group = _places.get((first, dtype))
    if group is None or group.versions is None:
        return None
    start = group.addresses.index(first)
    mine = slice(start, start + len(weights))
    same = group.addresses[mine] == [w.data_ptr() for w in weights] and group.versions[mine] == [w._version for w in weights]
    return group.stack[mine] if same and weights[0].shape == group.weights[0].shape else None
