"""Cut an image file that holds two images side by side, A on the left and B on the right."""

from __future__ import annotations

from typing import Literal

from fastcyclegan.data.image_file import Size

Half = Literal["left", "right"]


def half_size(size: Size, half: Half | None) -> Size:
    """Return the (width, height) of a ``half`` of an image of ``size``, or ``size`` if ``half`` is None."""
    if half is None:
        return size
    return size[0] // 2, size[1]


def half_box(size: Size, half: Half | None) -> tuple[int, int, int, int]:
    """Return the (left, top, right, bottom) of a ``half`` of an image of ``size``, as Pillow crops it."""
    width, height = half_size(size, half)
    left = width if half == "right" else 0
    return left, 0, left + width, height


def why_not_halves(size: Size) -> str:
    """Return why an image of ``size`` cannot be cut into two images of equal width, or "" if it can."""
    width, height = size
    if width % 2:
        return (
            f"{width}x{height} has an odd width, so it cannot be cut into two images of equal width, A on the"
            " left and B on the right"
        )
    return ""
