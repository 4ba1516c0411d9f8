"""Halves of images: their sizes and boxes, and widths that cannot be halved."""

from __future__ import annotations

from fastcyclegan.data.halves import half_box, half_size, why_not_halves


def test_a_half_is_half_as_wide() -> None:
    assert half_size((100, 40), "left") == half_size((100, 40), "right") == (50, 40)
    assert half_size((100, 40), None) == (100, 40)


def test_a_is_on_the_left_and_b_on_the_right() -> None:
    assert half_box((100, 40), "left") == (0, 0, 50, 40)
    assert half_box((100, 40), "right") == (50, 0, 100, 40)
    assert half_box((101, 40), None) == (0, 0, 101, 40)


def test_an_odd_width_cannot_be_halved() -> None:
    assert why_not_halves((100, 41)) == ""
    assert why_not_halves((101, 40)).startswith("101x40 has an odd width, so it cannot be cut into two")
