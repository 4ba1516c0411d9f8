"""Check that weights are finite, and that they stay finite in another dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError, shortened


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of floating point in nested dicts and lists, with their keys joined by dots."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _named(item, f"{name}.{number}" if name else str(number))


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Return whether each tensor of floating point has only finite values. Waits once for each device."""
    finite = [True] * len(tensors)
    for device in {t.device for t in tensors}:
        places = [place for place, t in enumerate(tensors) if t.device == device]
        flags = torch.stack([tensors[place].isfinite().all() for place in places]).tolist()
        for place, flag in zip(places, flags, strict=True):
            finite[place] = flag
    return finite


def not_finite_in(values: Any) -> str | None:
    """Return a text about the first tensor in ``values`` that is not finite, or None if all are.

    ``values`` are nested dicts and lists. The text has the tensor's name and one of its values.
    """
    named = list(_named(values))
    for (name, t), is_finite in zip(named, are_finite([t for _, t in named]), strict=True):
        if not is_finite:
            return f"{shortened(name)} contains {t[~t.isfinite()][0].item()}"
    return None


def require_representable(weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path | str) -> None:
    """Raise UserError if one of ``weights`` is not finite, or would not be in ``dtype``.

    ``source`` names the weights in the message. Integers, such as counters of batch norm, are not checked.
    """
    for name, value in _named(weights):
        if value.to(dtype).isfinite().all():
            continue
        wide = value.double()
        if not wide.isfinite().all():
            raise UserError(f"{source}: {not_finite_in({name: wide})}, so these weights cannot be used")
        largest = wide.abs().max().item()
        kind, limit = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
        raise UserError(
            f"{source}: {shortened(name)} contains numbers up to {largest:g}, but {kind} ends at {limit:g}:"
            " use a dtype with a wider range"
        )
