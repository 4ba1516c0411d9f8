"""Rules for tensors that were read from a file; see ``schema.py``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.files.schema import (
    MisfitError,
    Rule,
    described,
    flag,
    joined,
    list_of,
    nothing_or,
    number,
    record,
    text,
    whole,
)


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


def like(example: Any) -> Rule:
    """Return a rule for values of the same form as ``example``, which consists of plain values and tensors.

    A tensor must have the shape and the dtype of the example's, a dict its keys and a list its length. In
    place of None, any number, text or tensor can be.
    """
    if isinstance(example, Tensor):
        return tensor(tuple(example.shape), example.dtype)
    if isinstance(example, bool):
        return flag
    if isinstance(example, int):
        return whole(-(2**63), 2**63 - 1)
    if isinstance(example, float):
        return number()
    if isinstance(example, str):
        return text()
    if isinstance(example, Mapping):
        return record({key: like(value) for key, value in example.items()})
    if isinstance(example, (list, tuple)):
        return _each_like(example)
    return nothing_or(_plain)


def _each_like(examples: Sequence[Any]) -> Rule:
    rules = [like(example) for example in examples]

    def check(value: Any, place: str) -> None:
        list_of(lambda entry, at: None, len(rules))(value, place)
        for n, (rule, entry) in enumerate(zip(rules, value, strict=True)):
            rule(entry, joined(place, n))

    return check


def _plain(value: Any, place: str) -> None:
    if isinstance(value, Tensor):
        require_range(plain_tensor(value, place), place)
    elif isinstance(value, float):
        number()(value, place)
    elif not isinstance(value, (bool, int, str)):
        raise MisfitError(place, f"must be a plain value or a tensor, got {described(value)}")
