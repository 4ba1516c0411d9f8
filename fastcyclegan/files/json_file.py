"""Read JSON files that may have been damaged or written by something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of ``pairs``. Python's parser would silently keep the last of two equal names."""
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} appears twice")
        result[name] = value
    return result


def parse_json(text: str | bytes) -> Any:
    """Return the value in ``text``.

    Raises ValueError if it is not JSON, or contains an object with two equal names.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


LARGEST = 2**30
"""Size of the largest file that is read, in bytes: more than the records of a million images need."""


def read_json(file: Path) -> Any:
    """Return the value in ``file``.

    Raises OSError if it cannot be read, and ValueError if it is not a regular file, too large or not JSON.
    """
    if file.exists() and not file.is_file():  # reading a pipe could block forever
        raise ValueError("it is not a regular file")
    if file.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    return parse_json(file.read_bytes())
