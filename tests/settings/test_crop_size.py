"""The sizes of crops: one number or two, in Python and on the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import (
    checked_crop_size,
    flag_value,
    joined_arguments,
    named_sides,
    parsed_crop_size,
    sides_of,
)


@pytest.mark.parametrize(
    ("value", "checked"),
    [(8, 8), ((8, 12), (8, 12)), ([8, 12], (8, 12)), ((8, 8), 8), ([1, 2**16], (1, 2**16))],
)
def test_a_size_has_one_form(value: Any, checked: Any) -> None:
    assert checked_crop_size(value) == checked
    assert parsed_crop_size(flag_value(checked)) == checked


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((8, 12, 16), "one number, or two for height and width, got 3 of them"),
        ([8], "one number, or two for height and width, got 1 of them"),
        ((), "one number, or two for height and width, got 0"),
        (True, "got True"),
        ((8, False), "got False"),
        (8.0, "got 8.0"),
        ("8", "got '8'"),
        (None, "got None"),
        ([[8], 8], "got a list"),
        (np.zeros(2), "got a ndarray"),
        (0, "at least 1, got 0"),
        ((8, -4), "at least 1, got -4"),
        (2**16 + 1, "at most 65536, got 65537"),
        ((8, 10**400), "at most 65536, got an integer of 1329 bits"),
    ],
)
def test_other_values_are_refused(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"^crop_size must be ") as error:
        checked_crop_size(value)
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_sides_are_height_and_width() -> None:
    assert sides_of(8) == (8, 8)
    assert sides_of((8, 12)) == (8, 12)
    assert named_sides(8) == {"crop_size 8": 8}
    assert named_sides((8, 12)) == {"height 8 of crop_size": 8, "width 12 of crop_size": 12}


@pytest.mark.parametrize(
    ("args", "joined"),
    [
        ("--crop_size 96 160 --lr 1", ["--crop_size", "96 160", "--lr", "1"]),
        ("--crop-size 96 photos", ["--crop-size", "96", "photos"]),
        ("--crop_size 1 2 3", ["--crop_size", "1 2 3"]),
        ("--crop_size -1 --seed 2 3", ["--crop_size", "-1", "--seed", "2", "3"]),
        ("--crop_size", ["--crop_size"]),
        ("--crop_size --lr 1", ["--crop_size", "--lr", "1"]),
        ("--crop_size=96 photos", ["--crop_size=96", "photos"]),
    ],
)
def test_the_numbers_after_the_flag_are_one_argument(args: str, joined: list[str]) -> None:
    assert joined_arguments(args.split()) == joined


@pytest.mark.parametrize("text", ["", " ", "1 2 3", "x", "8 x", "8x12", "1.5", "9" * 5000, "\x1b"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="crop_size must be one number, or two for height and width") as error:
        parsed_crop_size(text)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200
