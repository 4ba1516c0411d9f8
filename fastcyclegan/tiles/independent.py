"""Translate tiles independently of each other, and blend neighbouring tiles where they overlap.

The whole network sees one tile at a time. So statistics are those of the tile, and the result depends on the
positions of the tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described

Translate = Callable[[int, int, int, int], Tensor]
"""Returns the translation [C, h, w] of the pixels in [top, bottom) x [left, right)."""
Finished = Callable[[int, Tensor], None]
"""Takes the number of a row, and the final rows [C, r, W] from there on."""


# --- What the flags mean ------------------------------------------------------------------------------------


def rounded(side: int, multiple: int) -> int:
    """Return ``side`` rounded up to a multiple of ``multiple``."""
    return -(-side // multiple) * multiple


def check(tile: Any, overlap: Any, multiple: int, least: int = 1) -> None:
    """Raise UserError unless --tile and --overlap can be used, both in pixels before rounding.

    ``multiple`` is the grid of the network, and ``least`` the smallest side that it can translate. A tile has
    at least two steps of the grid. The overlap is at most half of the tile, both on the grid, so that a tile
    only has seams with the next one and the one before.
    """
    for flag, value in (("--tile", tile), ("--overlap", overlap)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{flag} must be a whole number of pixels, got {described(value)}")
    smallest = max(2 * multiple, rounded(least, multiple))
    if tile < smallest:
        raise UserError(f"--tile must be at least {smallest} for this network, got {described(tile)}")
    if overlap < 0:
        raise UserError(f"--overlap must be at least 0, got {described(overlap)}")
    side = rounded(tile, multiple)
    largest = side // 2 // multiple * multiple
    if overlap > largest:
        limit = f"{described(largest)} for --tile {described(side)}"
        raise UserError(f"--overlap must be at most {limit}, got {described(overlap)}")


# --- Where the tiles are ------------------------------------------------------------------------------------


def positions(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Return where the tiles start that cover [0, size) on one axis.

    All are of the side ``tile``, or there is only one, of the side ``size``. Neighbours overlap by
    ``overlap``, rounded up to the grid of ``multiple``. The last tile ends at ``size``, so it may overlap
    more. Raises ValueError if ``size`` or ``tile`` is not on the grid.
    """
    if size < 1 or size % multiple or tile % multiple:
        raise ValueError(f"size and tile must be multiples of {multiple}, got {size} and {tile}")
    if size <= tile:
        return [0]
    last = size - tile
    return [*range(0, last, tile - rounded(overlap, multiple)), last]


@dataclass(frozen=True)
class Span:
    """A tile on one axis: the network translates [start, end), of which [first, end) is used.

    Over [first, full), the tile before it fades into it.
    """

    start: int
    first: int
    full: int
    end: int


def spans(size: int, tile: int, overlap: int, multiple: int) -> list[Span]:
    """Return the tiles of ``positions`` with their seams.

    A seam is where two neighbours overlap, without what the tile before both covers too. That can only happen
    at the last tile, if it overlaps more than the others. Seams are disjoint, and none is narrower than the
    overlap.
    """
    starts = positions(size, tile, overlap, multiple)
    ends = [min(start + tile, size) for start in starts]
    found = [Span(0, 0, 0, ends[0])]
    for start, end in zip(starts[1:], ends[1:], strict=True):
        before = found[-1]
        found.append(Span(start, max(start, before.full), before.end, end))
    return found


# --- Blending -----------------------------------------------------------------------------------------------


def ramp(length: int, like: Tensor) -> Tensor:
    """Return the weights [length] of a tile where it fades in, of the dtype and device of ``like``.

    They are 1 / (length + 1), 2 / (length + 1) and so on, so that the steps are equal, including those from 0
    and to 1 at both ends.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)  # 16 bits cannot count the pixels
    counts = torch.arange(1, length + 1, dtype=dtype, device=like.device)
    return (counts / (length + 1)).to(like.dtype)


@torch.no_grad()
def blended(
    size: tuple[int, int],
    tile: int,
    overlap: int,
    multiple: int,
    translate: Translate,
    finished: Finished,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Translate an image of ``size`` (height, width) tile by tile, and pass on its rows from top to bottom.

    ``translate`` returns the network's result for some pixels; the next call may overwrite it. ``finished``
    gets each row once, as soon as no other tile changes it, and may keep it. ``progress`` is called after
    each tile with the share of tiles that are done. The rows have the dtype and the device of what
    ``translate`` returns, and no gradients are recorded.

    Where tiles agree, the result is exactly theirs, and elsewhere it lies between them. Memory is needed for
    a tile and at most two bands of tiles, however high the image is. Raises UserError if ``tile`` or
    ``overlap`` cannot be used, and ValueError if ``size`` or ``tile`` is not on the grid of ``multiple``.
    """
    check(tile, overlap, multiple)
    rows, columns = (spans(side, tile, overlap, multiple) for side in size)
    counted = _counted(translate, len(rows) * len(columns), progress)
    rest: Tensor | None = None  # the last rows of the band before, which fade into this one
    for row, following in itertools.zip_longest(rows, rows[1:]):
        band = _band(row, columns, counted)
        if rest is not None:
            _fade(rest, band[:, : row.full - row.first])
        end = row.end if following is None else following.first
        finished(row.first, band[:, : end - row.first])
        rest = None  # frees it before the next one is copied
        rest = band[:, end - row.first :].clone()
        del band  # frees it before the next one is translated


def _counted(translate: Translate, total: int, progress: Callable[[float], None] | None) -> Translate:
    """Return ``translate``, which then also calls ``progress`` with the share of ``total`` calls."""
    if progress is None:
        return translate
    numbers = itertools.count(1)

    def counted(top: int, bottom: int, left: int, right: int) -> Tensor:
        result = translate(top, bottom, left, right)
        progress(next(numbers) / total)
        return result

    return counted


def _band(row: Span, columns: Sequence[Span], translate: Translate) -> Tensor:
    """Return the tiles of ``row`` blended from left to right, from its first row that is used [C, r, W]."""
    band: Tensor | None = None
    for column in columns:
        tile = translate(row.start, row.end, column.start, column.end)
        visible = tile[:, row.first - row.start :, column.first - column.start :]
        if band is None:
            band = tile.new_empty((*visible.shape[:2], columns[-1].end))
        seam, inner = visible.tensor_split([column.full - column.first], dim=2)
        band[:, :, column.first : column.full].lerp_(seam, ramp(seam.shape[2], seam))
        band[:, :, column.full : column.end] = inner
        del tile, visible, seam, inner  # frees them before the next tile is translated
    assert band is not None  # an image has at least one tile
    return band


def _fade(before: Tensor, seam: Tensor) -> None:
    """Blend the rows ``before`` [C, r, W] into ``seam``, in place. Both are overwritten."""
    seam.copy_(before.lerp_(seam, ramp(seam.shape[1], seam)[:, None]))
