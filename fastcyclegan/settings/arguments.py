"""Check the values on a command line before it is parsed, so that a mistake is one clear line.

Flags are spelled with _ and without the leading dashes.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described


def _types(config: Any) -> dict[str, Any]:
    """Return the type of each flag of the dataclass ``config``, which may consist of other dataclasses."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(config).items():
        if dataclasses.is_dataclass(hint):
            found |= _types(hint)
        else:
            found[name] = hint
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (types.UnionType, Union):
        return get_args(hint)
    return (hint,)


def typed_values(config: type, flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of those ``flags`` that the dataclass ``config`` has, with numbers as numbers.

    ``flags`` maps each flag to its value or the argument after it. A switch is True. Raises UserError for a
    missing value, for what is not a number where one is needed, and for what is not among the choices.
    """
    known = _types(config)
    return {name: _typed(name, value, known[name]) for name, value in flags.items() if name in known}


def _typed(name: str, value: str, hint: Any) -> Any:
    kinds = _kinds(hint)
    if bool in kinds:
        return True
    if not value or value.startswith("--"):
        raise UserError(f"--{name}: no value given")
    if value == "None" and type(None) in kinds:
        return None
    if any(get_origin(kind) is tuple for kind in kinds):  # other arguments can follow
        return value
    literals = [kind for kind in kinds if get_origin(kind) is Literal]
    choices = [choice for kind in literals for choice in get_args(kind)]
    if value in choices:
        return value
    if choices and not {int, float} & set(kinds):
        listed = ", ".join(map(str, choices))
        raise UserError(f"--{name} must be one of {listed}, got {described(value)}")
    return _number(name, value, kinds, choices)


def _number(name: str, value: str, kinds: tuple[Any, ...], choices: Sequence[Any]) -> Any:
    """Return ``value`` as a number if ``kinds`` contains int or float, otherwise as it is.

    ``choices`` are the words that are possible too.
    """
    for kind, wanted in ((int, "an integer"), (float, "a number")):
        if kind in kinds:
            try:
                return kind(value)
            except ValueError:
                words = "".join(f" or {choice}" for choice in choices)
                raise UserError(f"--{name} must be {wanted}{words}, got {described(value)}") from None
    return value


def require_known(
    config: type, unknown: Iterable[str], owners: Callable[[str], Sequence[str]] = lambda flag: ()
) -> None:
    """Raise UserError if there is an ``unknown`` argument. The line suggests similar flags of ``config``.

    If the flag is one of other recipes, whose names ``owners`` returns, the line says so.
    """
    arguments = list(unknown)
    if not arguments:
        return
    first, _, _ = arguments[0].partition("=")
    if not first.startswith("-"):
        raise UserError(f"unknown argument {described(first)}")
    recipes = owners(first.lstrip("-").replace("-", "_"))
    if recipes:
        raise UserError(
            f"{first} is a flag of --model {' and of --model '.join(recipes)}; --help lists all flags"
        )
    known = {name.lower(): name for name in _types(config)}
    similar = difflib.get_close_matches(first.lstrip("-").replace("-", "_").lower(), known, n=2, cutoff=0.7)
    hint = "--help lists all flags"
    if similar:
        hint = f"did you mean {' or '.join(f'--{known[name]}' for name in similar)}?"
    raise UserError(f"unknown flag {first}; {hint}")
