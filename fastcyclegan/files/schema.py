"""Rules for values that were read from a file: their types, ranges, shapes and parts.

A rule is called with a value and its place in the file, and raises MisfitError for the first part that is not
as it should be. Rules are built from other rules, so a schema is one expression that shows the whole value.
Nothing that a file contains makes a rule fail in another way: neither huge numbers nor deep nesting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any, str], object]


class MisfitError(ValueError):
    """A value does not follow its rule. The message names its place and says what is wrong, in one line.

    ``place`` is the path of keys to the value, joined by dots.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place} {problem}")
        self.place, self.problem = place, problem

    def within(self, place: str, key: object) -> MisfitError:
        """Return this error for the same value as part of the entry ``key`` of the value at ``place``."""
        outer = joined(place, key)
        return MisfitError(f"{outer}.{self.place}" if self.place else outer, self.problem)


def unchecked(value: Any, place: str) -> None:
    """Accept any value, for example one that is checked elsewhere."""


def described(value: Any) -> str:
    """Return a short text for ``value``, whatever it is: numbers and short texts as they are."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}..."
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"


def joined(place: str, key: object) -> str:
    """Return the place of the entry ``key`` of the value at ``place``."""
    name = key if isinstance(key, str) and key.isprintable() and len(key) <= 80 else described(key)
    return f"{place}.{name}" if place else name


def whole(low: int, high: int) -> Rule:
    """Return a rule for integers from ``low`` to ``high``. A bool is no integer."""

    def check(value: Any, place: str) -> None:
        if type(value) is not int:
            raise MisfitError(place, f"must be an integer, got {described(value)}")
        if not low <= value <= high:
            raise MisfitError(place, f"must be from {low} to {high}, got {described(value)}")

    return check


def number(low: float = -math.inf, high: float = math.inf, *, infinite: bool = False) -> Rule:
    """Return a rule for numbers from ``low`` to ``high``, which are finite unless ``infinite`` is set."""

    def check(value: Any, place: str) -> None:
        if type(value) not in (int, float) or value != value:
            raise MisfitError(place, f"must be a number, got {described(value)}")
        is_huge = abs(value) > 1.7e308
        if is_huge and not (infinite and value == math.inf):
            raise MisfitError(place, f"must be finite, got {described(value)}")
        if not low <= value <= high:
            raise MisfitError(place, f"must be from {low:g} to {high:g}, got {described(value)}")

    return check


def exactly(expected: Any) -> Rule:
    """Return a rule for values that equal ``expected`` and have its type."""

    def check(value: Any, place: str) -> None:
        if type(value) is not type(expected) or value != expected:
            raise MisfitError(place, f"must be {described(expected)}, got {described(value)}")

    return check


def flag(value: Any, place: str) -> None:
    """Raise MisfitError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise MisfitError(place, f"must be True or False, got {described(value)}")


def text(*choices: str) -> Rule:
    """Return a rule for text, one of ``choices`` if there are any."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str):
            raise MisfitError(place, f"must be text, got {described(value)}")
        if choices and value not in choices:
            raise MisfitError(place, f"must be one of {', '.join(choices)}, got {described(value)}")

    return check


def nothing_or(rule: Rule) -> Rule:
    """Return a rule for values that are None or follow ``rule``."""

    def check(value: Any, place: str) -> None:
        if value is not None:
            rule(value, place)

    return check


def list_of(rule: Rule, count: int | None = None) -> Rule:
    """Return a rule for lists, of ``count`` entries if that is given, all of which follow ``rule``."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, (list, tuple)):
            raise MisfitError(place, f"must be a list, got {described(value)}")
        if count is not None and len(value) != count:
            raise MisfitError(place, f"must have {count} entries, got {len(value)}")
        for n, entry in enumerate(value):
            try:
                rule(entry, "")
            except MisfitError as misfit:  # the place is put together only now: a cache has many entries
                raise misfit.within(place, n) from None

    return check


def entries(value: Any, place: str) -> Mapping[Any, Any]:
    """Return ``value``, which must be a mapping. Raises MisfitError for anything else."""
    if not isinstance(value, Mapping):
        raise MisfitError(place, f"must be a dict, got {described(value)}")
    return value


def record(required: Mapping[Any, Rule], optional: Mapping[Any, Rule] | None = None) -> Rule:
    """Return a rule for mappings that have all of the ``required`` entries and no unknown ones.

    Each entry must follow its rule. ``optional`` entries may be missing.
    """
    allowed = {**required, **({} if optional is None else optional)}
    kinds = {key: type(key) for key in allowed}

    def check(value: Any, place: str) -> None:
        mapping = entries(value, place)
        for key in required:
            if key not in mapping:
                raise MisfitError(joined(place, key), "is missing")
        for key, entry in mapping.items():
            # True and 1.0 equal 1, but are not the key 1.
            if key not in allowed or type(key) is not kinds[key]:
                raise MisfitError(joined(place, key), "is unexpected")
            try:
                allowed[key](entry, "")
            except MisfitError as misfit:
                raise misfit.within(place, key) from None

    return check
