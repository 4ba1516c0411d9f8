"""Call the functions of the C++ library with tensors as pointers."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import library

_P, _I, _F, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_int64
# The types of the arguments of each function, and of its result.
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "fcg_norm": ([_I] + [_P] * 7 + [_I] * 7 + [_F, _F, _I], _I),
    "fcg_region_moments": ([_I, _P, _L, _P, _P] + [_I] * 4, _I),
    "fcg_norm_region": ([_I, _P, _L, _P, _L] + [_P] * 5 + [_I] * 4 + [_F, _I], _I),
    "fcg_norm_lines": ([_I] + [_P] * 7 + [_I, _I, _L, _I, _F, _F, _I], _I),
    "fcg_norm_backward": ([_I] + [_P] * 8 + [_I] * 6 + [_F, _I], _I),
    "fcg_norm_backward_lines": ([_I] + [_P] * 8 + [_I, _I, _L, _I, _F, _I], _I),
    "fcg_sum_pixels": ([_I, _P, _P, _L, _I, _I], _I),
    "fcg_fold": ([_I] + [_P] * 3 + [_I] * 6, _I),
    "fcg_pad": ([_I, _I, _P, _P] + [_I] * 7, _I),
    "fcg_winograd": ([_I] * 3 + [_P] * 4 + [_I] * 8, _I),
    "fcg_winograd_size": ([_I] * 2, _L),
    "fcg_winograd_weight": ([_I, _P, _P] + [_I] * 3, _I),
    "fcg_winograd_gradient": ([_I] + [_P] * 3 + [_I] * 9, _I),
    "fcg_wide_gradient": ([_I] + [_P] * 3 + [_I] * 11, _I),
    "fcg_few_gradient": ([_I] + [_P] * 3 + [_I] * 11, _I),
    "fcg_wide": ([_I] + [_P] * 4 + [_I] * 8, _I),
    "fcg_wide_size": ([_I] * 3, _L),
    "fcg_wide_weight": ([_P, _P] + [_I] * 4, _I),
    "fcg_few": ([_I, _I] + [_P] * 4 + [_I] * 8, _I),
    "fcg_few_size": ([_I] * 3, _L),
    "fcg_few_weight": ([_P, _P] + [_I] * 4, _I),
    "fcg_equal": ([_P, _P, _L, _I], _I),
}


@functools.cache
def function(name: str) -> Callable[..., Any]:
    """Return a function of the library with its types declared."""
    found: Callable[..., Any] = getattr(library.library(), name)
    found.argtypes, found.restype = _SIGNATURES[name]  # type: ignore[attr-defined]
    return found


def call(name: str, *arguments: Any) -> None:
    """Call a kernel with tensors as pointers, and with the number of threads as its last argument.

    Raises MemoryError if the kernel gets no memory for its own use.
    """
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if function(name)(*pointers, library.threads()):
        raise MemoryError(f"{name}: out of memory for the kernel's own use")


def have_equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Return whether two dense tensors of the same shape, strides and dtype have the same bytes."""
    arguments = (a.data_ptr(), b.data_ptr(), a.numel() * a.element_size())
    return bool(function("fcg_equal")(*arguments, library.threads()))
