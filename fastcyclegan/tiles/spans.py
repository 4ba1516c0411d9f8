"""Which pixels of its input a layer reads for given pixels of its output, along one axis.

A span (start, stop) is a range of rows or columns. Positions outside [0, side) belong to a padding.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int]
Window = tuple[Span, Span]
"""The rows and the columns of a region."""


def union(a: Span | None, b: Span) -> Span:
    """Return the shortest span that contains both spans."""
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))


def length(span: Span) -> int:
    return span[1] - span[0]


def cuts(side: int, step: int) -> list[Span]:
    """Divide [0, side) into spans of ``step``; the last one can be shorter."""
    return [(start, min(start + step, side)) for start in range(0, side, step)]


def shown(position: int, side: int, mode: str) -> int:
    """Return the position in [0, side) whose pixel a padding shows at ``position``."""
    if mode == "reflect":
        if position < 0:
            position = -position
        if position >= side:
            position = 2 * (side - 1) - position
    return min(max(position, 0), side - 1)


def is_inside(span: Span, side: int) -> bool:
    return span[0] >= 0 and span[1] <= side


def clipped(span: Span, side: int) -> Span:
    """Return the part of ``span`` in [0, side), or the nearest pixel if there is none."""
    start = min(max(span[0], 0), side - 1)
    return start, max(min(span[1], side), start + 1)


def padded_span(span: Span, side: int, mode: str) -> Span:
    """Return the pixels in [0, side) that a padded line shows in ``span``."""
    if mode == "zeros" or is_inside(span, side):
        return clipped(span, side)
    # Between these positions, the pixels that are shown follow one another.
    bounds = (
        span[0],
        min(span[1], 0) - 1,
        max(span[0], 0),
        min(span[1], side) - 1,
        max(span[0], side),
        span[1] - 1,
    )
    places = [shown(position, side, mode) for position in bounds if span[0] <= position < span[1]]
    return min(places), max(places) + 1


def convolved_span(span: Span, kernel: int, stride: int, dilation: int) -> Span:
    """Return what a convolution without padding reads for ``span`` of its output."""
    return span[0] * stride, (span[1] - 1) * stride + dilation * (kernel - 1) + 1


def transposed_span(span: Span, side: int, sizes: Sequence[int]) -> Span:
    """Return what a transposed convolution reads for ``span`` of its output, from an input of ``side``.

    ``sizes`` are its kernel, stride, padding and dilation. Where the stride leaves gaps between the pixels of
    the result that depend on the input, the pixel before the gap is read.
    """
    kernel, stride, padding, dilation = sizes
    first = -((dilation * (kernel - 1) - padding - span[0]) // stride)
    first = min(first, (span[0] + padding) // stride)
    return clipped((first, (span[1] - 1 + padding) // stride + 1), side)


def relative(span: Span, to: Span) -> slice:
    """Return the positions of ``span`` within ``to``, which contains it."""
    return slice(span[0] - to[0], span[1] - to[0])
