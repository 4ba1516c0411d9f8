"""Choose between the C++ kernels and PyTorch's operators by measured times.

The times are stored for each class of processors in ``tables/<class>.json``, which ``python -m
bench.cpu_table`` fills. A shape that is missing there is decided by the most similar one of the same
operator, dtype, kernel and stride, and if there is none, PyTorch computes it.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path

import torch

from .processors import processor

TABLES = Path(__file__).with_name("tables")
Entry = tuple[tuple[float, float, float], bool]
"""The binary logarithms of a shape's C, O and pixels, and whether the C++ kernel is faster for it."""


def key(op: str, dtype: torch.dtype, k: int, stride: int, C: int, O: int, pixels: int) -> str:
    """Return the name of a shape in the table.

    ``op`` is "conv" (a convolution whose weight is laid out in advance), "once" (one whose weight is not),
    "dgrad" or "wgrad" (the gradients of the image and of the weight).
    """
    return f"{op} {str(dtype).removeprefix('torch.')} {k}x{k} s{stride} {C}-{O} {pixels}"


def table_file(kind: str) -> Path:
    """Return the file of the processors of class ``kind``."""
    return TABLES / f"{kind}.json"


@functools.cache
def times(kind: str) -> dict[str, dict[str, float]]:
    """Return {shape: {"cpp": ms, "torch": ms}} for the processors of class ``kind``, {} if there is none."""
    file = table_file(kind)
    if not file.exists():
        return {}
    table: dict[str, dict[str, float]] = json.loads(file.read_text())
    return table


def is_measured() -> bool:
    """Return whether impl="auto" may select the kernels: only where their speed was measured, on Linux."""
    return sys.platform == "linux" and bool(times(processor()))


@functools.cache
def _entries(kind: str) -> dict[str, list[Entry]]:
    """Return the entries of the table by operator, dtype, kernel and stride."""
    entries: dict[str, list[Entry]] = {}
    for name, measured in times(kind).items():
        group, channels, pixels = name.rsplit(" ", 2)
        C, O = channels.split("-")
        place = (math.log2(int(C)), math.log2(int(O)), math.log2(int(pixels)))
        entries.setdefault(group, []).append((place, measured["cpp"] < measured["torch"]))
    return entries


@functools.lru_cache(maxsize=1024)
def is_faster(op: str, dtype: torch.dtype, k: int, stride: int, C: int, O: int, pixels: int) -> bool:
    """Return whether the C++ kernel was faster than PyTorch for the most similar shape that was measured.

    Where only "conv" was measured, it stands for the other operators of a convolution.
    """
    group = key(op, dtype, k, stride, C, O, pixels).rsplit(" ", 2)[0]
    entries = _entries(processor()).get(group)
    if not entries and op in ("once", "dgrad", "wgrad"):
        return is_faster("conv", dtype, k, stride, C, O, pixels)
    if not entries or not min(C, O, pixels):
        return False
    place = (math.log2(C), math.log2(O), math.log2(pixels))
    return min(entries, key=lambda entry: math.dist(entry[0], place))[1]


# The result cannot change, and torch.compile need not trace how it is found.
is_faster._dynamo_marked_constant = True  # type: ignore[attr-defined]
