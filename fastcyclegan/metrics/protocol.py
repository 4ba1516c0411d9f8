"""The protocol of a number: everything that it depends on besides the images that are measured.

It is stored with the number, and numbers of different protocols are not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastcyclegan.errors import UserError, shortened

VERSIONS = "versions"
_PACKAGES = ("fastcyclegan", "torch", "torchmetrics", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute the metrics."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _leaves(protocol: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in protocol.items():
        path = f"{place}.{name}" if place else name
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return a text for each part that differs, apart from versions, which change no definition."""
    in_a, in_b = (dict(_leaves({k: v for k, v in each.items() if k != VERSIONS})) for each in (a, b))
    missing = object()
    texts = []
    for place in {**in_a, **in_b}:
        one, other = in_a.get(place, missing), in_b.get(place, missing)
        if one != other:
            texts.append(f"{place} is {_text(one, missing)} and {_text(other, missing)}")
    return texts


def _text(value: Any, missing: object) -> str:
    return "not given" if value is missing else shortened(str(value))


def require_same(a: Mapping[str, Any], b: Mapping[str, Any], what: str) -> None:
    """Raise UserError if two protocols differ, so that their numbers cannot be compared."""
    found = differences(a, b)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{what}: numbers of different protocols cannot be compared: {found[0]}{more}")


def described(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Return ``protocol`` as rows of a table: the name of each part and its values."""
    rows = {}
    for name, part in protocol.items():
        if isinstance(part, Mapping):
            rows[name] = ", ".join(f"{place} {value}" for place, value in _leaves(part))
        else:
            rows[name] = str(part)
    return rows
