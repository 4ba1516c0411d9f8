"""Tests of the settings of tiles: their bounds, and values that have no effect beside the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.settings.tiles import TileSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(
            ({"tile": tile}, f"tile must be an integer of at least 1, auto or None, got {tile!r}")
            for tile in (0, -4, True, 1.5, "512", 2**31)
        ),
        *(
            (
                {"tile_mode": "independent", "overlap": overlap},
                "overlap must be an integer of at least 0, got",
            )
            for overlap in (-1, True, 1.5, None, 2**31)
        ),
        ({"tile_mode": "fast"}, "tile_mode must be one of exact, independent, got 'fast'"),
        ({"tile_storage": None}, "tile_storage must be one of memory, disk, got None"),
        ({"overlap": 32}, "--overlap has no effect without --tile_mode independent"),
        ({"tile": None, "tile_mode": "independent"}, "--tile_mode has no effect with --tile None"),
        ({"tile": None, "overlap": 32}, "--overlap has no effect with --tile None"),
        ({"tile": None, "tile_storage": "disk"}, "--tile_storage has no effect with --tile None"),
        (
            {"tile_mode": "independent", "tile_storage": "disk"},
            "--tile_storage has no effect with --tile_mode independent, which stores nothing",
        ),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as found:
        TileSettings(**values)
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tile": None},
        {"tile": 1},
        {"tile": 512, "tile_mode": "independent", "overlap": 0},
        {"tile": "auto", "tile_storage": "disk"},
    ],
)
def test_what_is_possible_is_kept(values: dict[str, Any]) -> None:
    settings = TileSettings(**values)
    assert {name: getattr(settings, name) for name in values} == values


def test_settings_are_taken_from_a_larger_configuration() -> None:
    @dataclass
    class Larger:
        weights: str = "x"
        tile: int = 96
        tile_mode: str = "independent"
        overlap: int = 8
        tile_storage: str = "memory"

    assert TileSettings.of(Larger()) == TileSettings(96, "independent", 8)
