"""Which images and pairs can be used, as far as tests of whole datasets (test_scan.py) do not show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.halves import Half
from fastcyclegan.data.pairs import Pairs
from fastcyclegan.data.usable import too_small, usable_pairs, without_partner


def checked(width: int, height: int) -> Checked:
    return Checked("x", 0, 0, width=width, height=height)


@pytest.mark.parametrize(
    ("size", "half", "reason"),
    [
        ((32, 16), None, ""),
        ((32, 16), "left", ""),
        ((32, 15), None, "32x15 is too small for a crop of 16 pixels"),
        ((31, 16), None, ""),
        ((30, 16), "right", "cut in halves, 15x16 is too small for a crop of 16 pixels"),
    ],
)
def test_the_crop_must_fit_into_a_half(size: tuple[int, int], half: Half | None, reason: str) -> None:
    fit, required = Fit("crop", 0, 16), ImageRequirements()
    assert too_small(checked(*size), fit, required, half) == reason


def test_a_half_must_be_large_enough_for_the_networks() -> None:
    required = ImageRequirements(least_side=24)
    assert too_small(checked(48, 24), Fit("none"), required, "left") == ""
    assert too_small(checked(40, 24), Fit("none"), required) == ""
    wanted = "cut in halves, 20x24 is too small: the networks need at least 24 pixels per side"
    assert too_small(checked(40, 24), Fit("none"), required, "left") == wanted


def test_pairs_are_equal_after_the_resize() -> None:
    """Rounding to a multiple of 4 may make them equal. Nothing is logged if all are good."""
    a, b = Path("a"), Path("b")
    good, logged = {a: checked(40, 25), b: checked(41, 24)}, list[str]()
    assert usable_pairs([(a, b)], good, Fit("none"), False, logged.append) == [(a, b)]
    assert not logged
    assert usable_pairs([(a, b)], good, Fit("keep"), True, logged.append) == []
    assert logged == [
        "skipped a and b: a pair needs images of one size, but --preprocess keep makes them 40x25 and 41x24",
        "1 pair is left out, because of bad images",
    ]


def test_images_without_a_partner_are_counted() -> None:
    a, b = Path("A"), Path("B")
    assert without_partner(Pairs([a / "1"], [b / "1"], [], []), a, b) == ""
    wanted = "1 image without a partner of the same name: 1 in B, the first x/2"
    assert without_partner(Pairs([], [], [], [b / "x" / "2"]), a, b) == wanted
    many = Pairs([], [], [a / str(n) for n in range(2000)], [])
    wanted = "2,000 images without a partner of the same name: 2,000 in A, the first 0"
    assert without_partner(many, a, b) == wanted
