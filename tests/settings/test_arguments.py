"""Mistakes on a command line are found before it is parsed, and reported in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.settings.arguments import require_known, typed_values


@dataclass
class Group:
    count: int = 1
    rate: float = 0.5
    limit: int | None = None
    mode: Literal["fast", "slow"] = "fast"


@dataclass
class Config:
    group: Group = field(default_factory=Group)
    folder: Path | None = None
    quiet: bool = False


def test_values_get_the_types_of_their_flags() -> None:
    flags = {
        "count": "3",
        "rate": "2e-4",
        "limit": "None",
        "mode": "slow",
        "folder": "./x",
        "quiet": "--rate",
    }
    expected = {"count": 3, "rate": 2e-4, "limit": None, "mode": "slow", "folder": "./x", "quiet": True}
    assert typed_values(Config, {**flags, "unknown": "1"}) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", "3.5", "--count must be an integer, got '3.5'"),
        ("limit", "many", "--limit must be an integer, got 'many'"),
        ("rate", "high", "--rate must be a number, got 'high'"),
        ("mode", "idle", "--mode must be one of fast, slow, got 'idle'"),
        ("count", "", "--count: no value given"),
        ("folder", "--quiet", "--folder: no value given"),
    ],
)
def test_wrong_values_are_rejected(name: str, value: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        typed_values(Config, {name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fodler=x"], "unknown flag --fodler; did you mean --folder?"),
        (["--COUNT", "3"], "unknown flag --COUNT; did you mean --count?"),
        (["--zzz"], "unknown flag --zzz; --help lists all flags"),
        (["images", "--zzz"], "unknown argument 'images'"),
    ],
)
def test_unknown_arguments_are_rejected(arguments: list[str], message: str) -> None:
    require_known(Config, [])
    with pytest.raises(UserError) as error:
        require_known(Config, arguments)
    assert str(error.value) == message
