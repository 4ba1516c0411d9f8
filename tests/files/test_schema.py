"""Each rule accepts what it describes, and names the place of anything else in one line."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from fastcyclegan.files.schema import (
    MisfitError,
    Rule,
    described,
    exactly,
    flag,
    joined,
    list_of,
    nothing_or,
    number,
    record,
    text,
    whole,
)
from tests.files.altered_values import NOT_JSON, PLAIN, altered

ACCEPTED: list[tuple[Rule, Any]] = [
    (whole(0, 3), 3),
    (number(0, 1), 1),
    (number(infinite=True), math.inf),
    (exactly([1, None]), [1, None]),
    (flag, False),
    (text(), ""),
    (text("a", "b"), "b"),
    (nothing_or(flag), None),
    (list_of(flag, 2), [True, False]),
    (list_of(flag), (True,)),
    (record({"a": flag}, {"b": flag}), {"a": True}),
    (record({"a": flag}, {"b": flag}), {"b": False, "a": True}),
    (record({}, {1: flag}), {1: True}),
]
REFUSED: list[tuple[Rule, Any, str]] = [
    (whole(0, 3), True, "x must be an integer, got True"),
    (whole(0, 3), 2.0, "x must be an integer, got 2.0"),
    (whole(0, 3), 4, "x must be from 0 to 3, got 4"),
    (whole(0, 3), 10**5000, "x must be from 0 to 3, got an integer of 16610 bits"),
    (number(), math.nan, "x must be a number, got nan"),
    (number(), "1", "x must be a number, got '1'"),
    (number(), math.inf, "x must be finite, got inf"),
    (number(infinite=True), -math.inf, "x must be finite, got -inf"),
    (number(infinite=True), 10**400, "x must be finite, got an integer of 1329 bits"),
    (number(0, 1), -1, "x must be from 0 to 1, got -1"),
    (exactly(1), True, "x must be 1, got True"),
    (exactly(1), 2, "x must be 1, got 2"),
    (flag, 1, "x must be True or False, got 1"),
    (text(), None, "x must be text, got None"),
    (text("a", "b"), "c\n", r"x must be one of a, b, got 'c\n'"),
    (nothing_or(flag), 0, "x must be True or False, got 0"),
    (list_of(flag), {}, "x must be a list, got a dict"),
    (list_of(flag, 2), [True], "x must have 2 entries, got 1"),
    (list_of(flag), [True, [0]], "x.1 must be True or False, got a list"),
    (record({"a": flag}), None, "x must be a dict, got None"),
    (record({"a": flag}), {}, "x.a is missing"),
    (record({"a": flag}), {"a": True, "c\n": 1}, r"x.'c\n' is unexpected"),
    (record({"a": flag}), {"a": 1}, "x.a must be True or False, got 1"),
    (record({}, {1: flag}), {True: True}, "x.True is unexpected"),
    (record({}, {1: flag}), {1.0: True}, "x.1.0 is unexpected"),
]


@pytest.mark.parametrize(("rule", "value"), ACCEPTED)
def test_values_that_follow_a_rule(rule: Rule, value: Any) -> None:
    rule(value, "x")


@pytest.mark.parametrize(("rule", "value", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_values_that_do_not(rule: Rule, value: Any, message: str) -> None:
    with pytest.raises(MisfitError) as error:
        rule(value, "x")
    assert str(error.value) == message
    assert error.value.place.startswith("x")


def test_any_value_can_be_described() -> None:
    for make in (*PLAIN, *NOT_JSON):
        line = described(make())
        assert line.isprintable(), line
        assert len(line) < 120, line
        assert joined("", make()).isprintable()


def test_rules_fail_in_no_other_way() -> None:
    rule = record({"a": list_of(whole(0, 9), 3), "b": record({"c": number()}), "d": nothing_or(text())})
    good = {"a": [1, 2, 3], "b": {"c": 0.5}, "d": "x"}
    rule(good, "")
    for seed in range(500):
        value, _ = altered(random.Random(seed), good, (*PLAIN, *NOT_JSON))
        message = ""
        try:
            rule(value, "")
        except MisfitError as error:
            message = str(error)
        assert message.isprintable()
