"""Copies of weights in the form that the kernels read, rounded and stacked once for many uses.

Operators take weights as separate fp32 tensors, and round and stack them on every use. A caller that changes
weights rarely and uses them often, such as a training step, can keep copies here. ``refresh`` updates all
copies in one pass, and operators that receive exactly these weights use the copies instead. Weights that have
changed since then (PyTorch counts changes) are rounded again on use, so an outdated copy is never used.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_groups: weakref.WeakValueDictionary[tuple[int, torch.dtype], _Group] = weakref.WeakValueDictionary()
_groups_by_stack: weakref.WeakValueDictionary[int, _Group] = weakref.WeakValueDictionary()


class _Group:
    """P weights [A, B, KH, KW] that are used together, and their stack [P, A, KH, KW, B].

    If the weights are vectors [A], their stack is [P, A].
    """

    def __init__(self, weights: Sequence[Tensor], stack: Tensor) -> None:
        self.weights, self.stack = list(weights), stack
        self.addresses = [w.data_ptr() for w in weights]
        self.versions: list[int] | None = None
        self.is_used = False
        self.forms: dict[tuple[str, int, int], Tensor] = {}
        self.fresh: set[tuple[str, int, int]] = set()
        _groups_by_stack.update((member.data_ptr(), self) for member in stack)


def _alike(group: Sequence[Tensor]) -> bool:
    """Return whether ``group`` is not empty and all its weights have the same shape."""
    return len(group) > 0 and all(w.shape == group[0].shape for w in group)


def _stack_in(memory: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the beginning of ``memory`` as a stack for ``weights``, without writing to it."""
    A, *trailing = weights[0].shape
    used = memory[: len(weights) * weights[0].numel()]
    return used.view(len(weights), A, *trailing[1:], *trailing[:1])


class WorkingCopies:
    """Copies of weights in ``dtype``, rounded and stacked for the kernels.

    ``groups`` are lists of weights [A, B, KH, KW] or of vectors. Each list has P weights of the same shape,
    one for each of P networks.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> None:
        if not groups or not all(map(_alike, groups)):
            raise ValueError(
                "WorkingCopies: groups must be non-empty lists of weights, with the same shape within a list"
            )
        alignment = 16 // dtype.itemsize
        # Kernels load 16 bytes at a time from addresses that are multiples of 16.
        sizes = [-(-len(weights) * weights[0].numel() // alignment) * alignment for weights in groups]
        memory = torch.empty(sum(sizes), dtype=dtype, device=groups[0][0].device)
        self.dtype = dtype
        self.groups: list[_Group] = []
        for weights, part in zip(groups, memory.split(sizes), strict=True):
            group = _Group(weights, _stack_in(part, weights))
            self.groups.append(group)
        self._list_members()

    def _list_members(self) -> None:
        """List the weights and their places in the stacks."""
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []
        for group in self.groups:
            self._sources.extend(w.detach() for w in group.weights)
            # In the order of the weights: [A, B, KH, KW], or vectors unchanged.
            stack = group.stack.permute(0, 1, 4, 2, 3) if group.stack.dim() == 5 else group.stack
            self._targets.extend(stack)

    def refresh(self) -> None:
        """Update all copies from the current weights."""
        if not self.groups:
            return
        torch._foreach_copy_(self._targets, self._sources)
        for group in self.groups:
            group.versions = [w._version for w in group.weights]
            group.fresh = set()
            # Others may have made copies of the same weights in the meantime.
            for address in group.addresses:
                _groups[address, self.dtype] = group

    def drop_unused(self) -> None:
        """Make no more copies of the groups that no operator has used so far."""
        self.groups = [group for group in self.groups if group.is_used]
        self._list_members()

    def forget(self) -> None:
        """Stop using the copies until the next ``refresh``.

        Call this if the weights may have changed in a way that PyTorch does not count, e.g. in a CUDA graph.
        """
        for group in self.groups:
            group.versions, group.fresh = None, set()


@contextlib.contextmanager
def only(copies: WorkingCopies | None) -> Iterator[None]:
    """Update ``copies``, and let operators read them, and no copies that others keep, inside the block.

    A graph that is captured in the block contains the update. If it read the copies of others, it would
    depend on memory that is not its own, and on their updates.
    """
    others = dict(_groups)
    _groups.clear()
    try:
        if copies is not None:
            copies.refresh()
        yield
    finally:
        if copies is not None:
            # The weights may change in ways that PyTorch does not count.
            copies.forget()
        _groups.clear()
        _groups.update(others)


def working_copy(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Return the stack [P, A, KH, KW, B] of ``weights`` in ``dtype``, or None if no copy is up to date."""
    if not _groups:
        return None
    first = weights[0].data_ptr()
    group = _groups.get((first, dtype))
    if group is None or group.versions is None:
        return None
    start = group.addresses.index(first)
    members = slice(start, start + len(weights))
    if weights[0].shape != group.weights[0].shape:
        return None
    if group.addresses[members] != [w.data_ptr() for w in weights]:
        return None
    if group.versions[members] != [w._version for w in weights]:
        return None
    group.is_used = True
    return group.stack[members]


def form_of(stack: Tensor, name: str, make: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """Return another form of ``stack``, which ``make(stack, None)`` computes.

    If ``stack`` is a working copy, the form is stored under ``name``, and is computed once per ``refresh``.
    From the second time on, ``make`` receives its previous result instead of None, and overwrites it.
    """
    group = _groups_by_stack.get(stack.data_ptr())
    if group is None or group.versions is None:
        return make(stack, None)
    if stack.dtype != group.stack.dtype or stack.shape[1:] != group.stack.shape[1:]:
        return make(stack, None)
    key = (name, stack.data_ptr(), stack.shape[0])
    if key not in group.fresh:
        group.forms[key] = make(stack, group.forms.get(key))
        group.fresh.add(key)
    return group.forms[key]
