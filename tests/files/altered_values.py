"""Alter nested values at random, as damage, other programs and older versions do: one alteration each.

The alterations are drawn from a seed, so a failure can be repeated. The original is not changed.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

DEEP = 10_000


def nested(depth: int = DEEP) -> list[Any]:
    """Return a list within a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


PLAIN: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: False,
    lambda: 0,
    lambda: -1,
    lambda: 2,
    lambda: 2**31,
    lambda: 2**63,
    lambda: 2**70,
    lambda: 10**400,
    lambda: -(10**400),
    lambda: 1.5,
    lambda: -0.5,
    lambda: 1e308,
    lambda: math.nan,
    lambda: math.inf,
    lambda: -math.inf,
    lambda: "",
    lambda: "auto",
    lambda: "x\ny\x1b[2J",
    lambda: "9" * 5000,
    lambda: "\ud800",
    lambda: "a\0b",
    lambda: [],
    lambda: {},
    lambda: [[1]],
    lambda: {"a": None},
    lambda: nested(),
    lambda: list(range(1000)),
)
"""Values of JSON."""
NOT_JSON: tuple[Callable[[], Any], ...] = (
    lambda: b"bytes",
    lambda: 1j,
    lambda: (1, 2),
    lambda: {1, 2},
    lambda: {1: 2, None: 3},
    lambda: 10**5000,
    lambda: torch.zeros(3),
    lambda: torch.tensor(math.nan),
    lambda: torch.zeros(2, 0),
    lambda: torch.zeros(1).expand(1 << 40),
    lambda: torch.zeros(2, 3, device="meta"),
    lambda: torch.zeros((1,) * 20),
)


def unusual(make: Callable[[], Tensor]) -> Tensor:
    """Return the tensor that ``make`` makes, without torch's warning that it is of an experimental kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def _with(t: Tensor, value: float) -> Tensor:
    """Return a copy of ``t`` with one element replaced."""
    changed = t.clone().to(t.dtype if t.dtype.is_floating_point else torch.float32)
    changed.view(-1)[changed.numel() // 2 :][:1] = value
    return changed


TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.bfloat16(),
    lambda t: t.long(),
    lambda t: t.bool(),
    lambda t: t.to(torch.complex64),
    lambda t: t.flatten(),
    lambda t: t[None],
    lambda t: t[..., :-1] if t.dim() else t[None],
    lambda t: t[..., :0] if t.dim() else t[None][:0],
    lambda t: t.mT.contiguous() if t.dim() > 1 else t,
    lambda t: t.flatten()[0].expand(t.shape),
    lambda t: torch.cat([t, t]) if t.dim() else t[None],
    lambda t: t.to("meta"),
    lambda t: t.float().to_sparse(),
    lambda t: unusual(lambda: t.float().flatten()[None].to_sparse_csr()),
    lambda t: unusual(lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)),
    lambda t: unusual(lambda: torch.nested.nested_tensor([t.float().flatten(), torch.zeros(1)])),
    lambda t: _with(t.contiguous(), math.nan),
    lambda t: _with(t.contiguous(), math.inf),
    lambda t: _with(t.contiguous(), -math.inf),
    lambda t: _with(t.contiguous(), 1e38),
    lambda t: _with(t.contiguous(), -1.0),
    lambda t: -t if t.dtype not in (torch.bool, torch.uint8) else 255 - t,
    lambda t: torch.zeros_like(t),
    lambda t: t.contiguous().clone(),
    lambda t: t.tolist(),
    lambda t: t.float().clone().requires_grad_(),
    lambda t: None,
)


def _other_of(rng: random.Random, value: Any, others: tuple[Callable[[], Any], ...]) -> Any:
    """Return another value in place of ``value``: often a similar one."""
    if isinstance(value, Tensor) and rng.random() < 0.9:
        return rng.choice(TENSORS)(value)
    if isinstance(value, (int, float)) and rng.random() < 0.4:
        similar = (value + 1, value - 1, -value, float(value), str(value), [value], bool(value), value * 1000)
        return rng.choice(similar)
    if isinstance(value, str) and rng.random() < 0.3:
        return rng.choice((value.upper(), value[:-1], value * 2, value.encode("utf-8", "replace").hex()))
    return rng.choice(others)()


def _restructured(rng: random.Random, value: Any) -> Any:
    """Return a copy of a dict or list with an entry that is missing, doubled, renamed, new or swapped."""
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value))
    kind = rng.choice(("delete", "add", "rename", "swap", "copy"))
    if items and kind != "add":
        n, m = rng.randrange(len(items)), rng.randrange(len(items))
        (key, entry), (other, second) = items[n], items[m]
        if kind == "delete":
            del items[n]
        elif kind == "rename":
            names = ("", f"{key}_", 10**400, -1, True, None, "x\ny", ("a", 1), len(items), str(key))
            items[n] = (rng.choice(names), entry)
        elif kind == "swap":
            items[n], items[m] = (key, second), (other, entry)
        else:
            items.append((f"{key}2", entry))
    else:
        items.append((rng.choice(("new", 99, None)), None))
    if isinstance(value, dict):
        return dict(items)
    return [entry for _, entry in items]


def altered(rng: random.Random, value: Any, others: tuple[Callable[[], Any], ...]) -> tuple[Any, str]:
    """Return ``value`` with one alteration somewhere inside, and the path to it.

    ``others`` make the values that take the place of an entry. The path is drawn key by key, so that small
    parts are altered as often as large ones.
    """
    is_inner = isinstance(value, (dict, list)) and len(value) > 0
    if is_inner and rng.random() < 0.85:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        entry, path = altered(rng, value[key], others)
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = entry
        return copy, f"/{key}{path}"
    if is_inner and rng.random() < 0.7:
        return _restructured(rng, value), ": restructured"
    return _other_of(rng, value, others), ": replaced"


def altered_json(rng: random.Random, value: Any) -> bytes:
    """Return the JSON text of ``value`` with one alteration: of a value in it, or of its bytes."""
    text = json.dumps(value).encode()
    kind = rng.choice(("value", "value", "value", "cut", "flip", "zeros", "twice", "deep", "bytes"))
    if kind == "value":
        try:
            return json.dumps(altered(rng, value, PLAIN)[0]).encode()
        except (TypeError, ValueError, RecursionError):  # it cannot be written
            return b"[" * 100_000
    place = rng.randrange(len(text))
    others = {
        "cut": text[:place],
        "flip": text[:place] + bytes([text[place] ^ 1 << rng.randrange(8)]) + text[place + 1 :],
        "zeros": text[:place] + bytes(len(text) - place),
        "twice": text.replace(b",", b"," + text[1:].partition(b",")[0] + b",", 1),
        "deep": text[:place] + b'{"a":[' * 50_000 + text[place:],
        "bytes": text[:place] + b"\xff\xfe" + text[place:],
    }
    return others[kind]
