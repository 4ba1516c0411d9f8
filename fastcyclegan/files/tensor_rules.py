"""Rules for tensors that were read from a file; see ``schema.py``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.files.schema import MisfitError, Rule, described


def plain_tensor(value: Any, place: str) -> Tensor:
    """Return ``value``, which must be an ordinary tensor with its data in memory.

    Raises MisfitError for anything else.
    """
    if not isinstance(value, Tensor):
        raise MisfitError(place, f"must be a tensor, got {described(value)}")
    is_plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    if not is_plain or value.device.type == "meta":
        raise MisfitError(place, "is not a plain tensor: it is sparse, quantized or nested, or has no data")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise MisfitError(place, "claims more memory than the file has")
    return value


def tensor(
    shape: tuple[int, ...], dtype: torch.dtype, low: float = -math.inf, high: float = math.inf
) -> Rule:
    """Return a rule for plain tensors of one shape and dtype, with finite values from ``low`` to ``high``."""

    def check(value: Any, place: str) -> None:
        found = plain_tensor(value, place)
        if found.shape != shape:
            raise MisfitError(place, f"has the shape {_listed(found.shape)} instead of {list(shape)}")
        if found.dtype != dtype:
            raise MisfitError(place, f"has the dtype {_name(found.dtype)} instead of {_name(dtype)}")
        require_range(found, place, low, high)

    return check


def require_range(found: Tensor, place: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise MisfitError unless all values of ``found`` are finite and from ``low`` to ``high``."""
    if not found.numel():
        return
    smallest, largest = (extreme.item() for extreme in torch.aminmax(found.detach()))
    # A NaN is both the smallest and the largest value.
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise MisfitError(place, "contains values that are not finite")
    if smallest < low or largest > high:
        raise MisfitError(
            place,
            f"has values from {smallest:g} to {largest:g}, but they must be from {low:g} to {high:g}",
        )


def _listed(shape: tuple[int, ...]) -> str:
    if len(shape) > 8:
        return f"of {len(shape)} dimensions"
    return str(list(shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
