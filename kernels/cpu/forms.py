"""Keep weights in the forms that convolutions on a processor read.

A convolution reads its weight in another form than the one in which a network stores it, such as Winograd's
transform. Without a ``WeightForms``, an operator makes that form on every call. Inside a ``with`` block of
one, the form is kept, together with a copy of the weight. The copy is compared with the weight before each
use, so a weight that was changed in any way is noticed. (PyTorch's version counters would miss changes
through ``.data`` and by fused Adam.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor

from .library import why_not_cpp
from .native import have_equal_bytes

_current: ContextVar[WeightForms | None] = ContextVar("weight_forms", default=None)
Key = tuple[Any, ...]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(weight: Tensor) -> Tensor:
    """Return ``weight`` as integers, because NaN is not equal to itself."""
    return weight.detach().view(_INTEGERS[weight.element_size()])


def _is_same(weight: Tensor, copy: Tensor) -> bool:
    """Return whether the bytes of ``weight`` are still those of its ``copy``."""
    if weight.stride() == copy.stride() and not why_not_cpp():
        # A copy has the strides of its original only if that is dense.
        return have_equal_bytes(weight, copy)
    return torch.equal(_bits(weight), _bits(copy))


class WeightForms:
    """Forms of weights, which operators reuse inside a ``with`` block of this object.

    At the end of a block, the forms are dropped that neither it nor another open block has used. Several
    threads can use one object.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, tuple[Tensor, Any]] = {}
        # What each open block has used, of all threads.
        self._used: list[set[Key]] = []
        self._blocks = threading.local()
        self._lock = threading.Lock()

    def __enter__(self) -> WeightForms:
        used: set[Key] = set()
        with self._lock:
            self._used.append(used)
        self._open().append((_current.set(self), used))
        return self

    def __exit__(self, *error: object) -> None:
        token, used = self._open().pop()
        _current.reset(token)
        with self._lock:
            needed = set().union(*self._used)
            self._used = [other for other in self._used if other is not used]
            self._kept = {key: form for key, form in self._kept.items() if key in needed}

    def _open(self) -> list[tuple[Token[WeightForms | None], set[Key]]]:
        """Return the blocks of this thread that have not ended."""
        if not hasattr(self._blocks, "open"):
            self._blocks.open = []
        blocks: list[tuple[Token[WeightForms | None], set[Key]]] = self._blocks.open
        return blocks

    def get(self, weight: Tensor, name: Any, make: Callable[[Tensor], Any]) -> Any:
        """Return the form ``name`` of ``weight``, which ``make(weight)`` computes if it is not up to date."""
        key = (weight.data_ptr(), weight.dtype, weight.shape, weight.stride(), name)
        with self._lock:
            for _, used in self._open():
                used.add(key)
            kept = self._kept.get(key)
        if kept is not None and _is_same(weight, kept[0]):
            return kept[1]
        copy = weight.detach().clone()
        form = make(copy)
        with self._lock:
            self._kept[key] = copy, form
        return form


def form_of(weight: Tensor, name: Any, make: Callable[[Tensor], Any]) -> Any:
    """Return ``make(weight)``, or the form of that ``name`` that the current ``WeightForms`` keeps."""
    forms = _current.get()
    if forms is None:
        return make(weight.detach())
    return forms.get(weight, name, make)


def has_forms() -> bool:
    """Return whether a ``WeightForms`` keeps the forms that are made now."""
    return _current.get() is not None
