"""The setting crop_size: one number for the side of a square, or two for height and width."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described

CropSize = int | tuple[int, int]

# More than any use needs, but little enough to be refused before memory or time run out.
MOST_PIXELS = 2**16
_FORM = "crop_size must be one number, or two for height and width"


def checked_crop_size(value: Any) -> CropSize:
    """Return ``value`` as a number, if height and width are equal, or as a tuple.

    Raises UserError if it is neither a number nor two, or if a side is out of range.
    """
    sides = [value]
    if isinstance(value, (list, tuple)):
        sides = list(value)
        if len(sides) != 2:
            raise UserError(f"{_FORM}, got {len(sides)} of them")
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool):
            raise UserError(f"{_FORM}, got {described(side)}")
        if side < 1:
            raise UserError(f"crop_size must be at least 1, got {described(side)}")
        if side > MOST_PIXELS:
            raise UserError(f"crop_size must be at most {MOST_PIXELS}, got {described(side)}")
    if len(set(sides)) == 1:
        return sides[0]
    return sides[0], sides[1]


def sides_of(crop_size: CropSize) -> tuple[int, int]:
    """Return the height and width of a crop, in pixels."""
    if isinstance(crop_size, int):
        return crop_size, crop_size
    return crop_size


def named_sides(crop_size: CropSize) -> dict[str, int]:
    """Return each side of a crop by how a message names it: one of a square, else height and width."""
    if isinstance(crop_size, int):
        return {f"crop_size {crop_size}": crop_size}
    height, width = crop_size
    return {f"height {height} of crop_size": height, f"width {width} of crop_size": width}


def flag_value(crop_size: CropSize) -> str:
    """Return ``crop_size`` as it is written on a command line: "256" or "96 160"."""
    if isinstance(crop_size, int):
        return str(crop_size)
    return f"{crop_size[0]} {crop_size[1]}"


# --- On the command line ------------------------------------------------------------------------------------


def joined_arguments(args: Sequence[str]) -> list[str]:
    """Return ``args`` in which all numbers after --crop_size are one argument, such as "96 160".

    So the flag takes one argument, and never what follows the numbers.
    """
    joined: list[str] = []
    is_size = False
    for arg in args:
        if is_size and re.fullmatch(r"-?[0-9]+", arg):
            if joined[-1].startswith("--"):
                joined.append(arg)
            else:
                joined[-1] += f" {arg}"
            continue
        is_size = arg.replace("-", "_") == "__crop_size"
        joined.append(arg)
    return joined


def parsed_crop_size(text: str) -> CropSize:
    """Return the size that the argument ``text`` of --crop_size means.

    Raises UserError if it is not one number or two.
    """
    words = text.split()
    if not words or len(words) > 2 or not all(re.fullmatch(r"-?[0-9]{1,30}", word) for word in words):
        raise UserError(f"{_FORM}, got {described(text)}")
    return checked_crop_size([int(word) for word in (*words, words[0])[:2]])
