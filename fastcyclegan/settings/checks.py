"""Check the values of settings: their types and bounds."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.crop_size import CropSize


def check_types(config: Any) -> None:
    """Raise UserError if the value of a field does not match its annotated type.

    The command line has checked this already; this check is for callers from Python and for config.json.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hint == CropSize:  # checked_crop_size has checked it
            continue
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise UserError(f"{name} must be one of {', '.join(get_args(hint))}, got {described(value)}")
            continue
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        is_wanted = any(_is_of(value, kind) for kind in kinds)
        if not is_wanted or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(_name_of(kind) for kind in kinds)
            raise UserError(f"{name} must be {names}, got {described(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:  # more than torch and numpy can count
            raise UserError(f"{name} must be below 2**63, got {described(value)}")
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                _check_path(name, item)


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether ``value`` is of ``kind``: a class, a Literal, tuple[kind, ...] or tuple[kind, kind]."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is not tuple:
        return isinstance(value, (float, int) if kind is float else kind)
    if not isinstance(value, tuple):
        return False
    first, *others = get_args(kind)
    items = [first] * len(value) if Ellipsis in others else [first, *others]
    return len(value) == len(items) and all(map(_is_of, value, items))


def _name_of(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return str(kind) if get_origin(kind) is tuple else str(kind.__name__)


def _check_path(name: str, path: Path) -> None:
    """Raise UserError if no file can have this path, because of characters that no system accepts."""
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a character, as in JSON's "\ud800"
        is_possible = False
    if not is_possible:
        raise UserError(f"{name} contains characters that no path can have: {described(str(path))}")


def is_folder_name(name: str) -> bool:
    """Return whether ``name`` can name a folder: printable, without separators, and not hidden."""
    return Path(name).name == name != "" and not name.startswith(".") and name.isprintable()


def check_minimum(config: Any, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise UserError(f"{name} must be at least {minimum}, got {value}")


def check_maximum(config: Any, maximum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value > maximum:
            raise UserError(f"{name} must be at most {maximum}, got {value}")
