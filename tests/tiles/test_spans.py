"""Spans contain exactly the pixels that PyTorch's operators read.

What an operator reads is found with gradients: those of a span of its output are not zero exactly there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.tiles.spans import (
    clipped,
    convolved_span,
    cuts,
    is_inside,
    length,
    padded_span,
    relative,
    shown,
    transposed_span,
    union,
)

PADS = {"reflect": "reflect", "replicate": "replicate", "zeros": "constant"}


def read_for(operator: Callable[[Tensor], Tensor], side: int, span: tuple[int, int]) -> list[int]:
    """Return the pixels of a line of ``side`` pixels that ``span`` of the operator's result depends on."""
    x = torch.zeros(1, 1, side, dtype=torch.float64, requires_grad=True)
    y = operator(x)[0, 0, slice(*span)]
    (gradient,) = torch.autograd.grad((y * torch.rand(y.shape, dtype=torch.float64).add(1)).sum(), x)
    return gradient.flatten().nonzero().flatten().tolist()


def every_span(side: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(side + 1), 2))


@pytest.mark.parametrize(("side", "step"), [(12, 5), (10, 5), (3, 7), (1, 1)])
def test_cuts_cover_each_pixel_once(side: int, step: int) -> None:
    spans = cuts(side, step)
    assert [pixel for span in spans for pixel in range(*span)] == list(range(side))
    assert all(length(span) == step for span in spans[:-1])


def test_spans_are_joined_and_clipped() -> None:
    assert union(None, (3, 5)) == (3, 5)
    assert union((3, 5), (8, 9)) == union((8, 9), (3, 5)) == (3, 9)
    assert clipped((-3, 4), 10) == (0, 4)
    assert clipped((4, 12), 10) == (4, 10)
    # Outside, the nearest pixel remains, because no tensor may be empty.
    assert clipped((-3, -1), 10) == (0, 1)
    assert clipped((11, 14), 10) == (9, 10)
    assert relative((7, 9), (4, 20)) == slice(3, 5)
    assert is_inside((0, 10), 10)
    assert not is_inside((-1, 10), 10)
    assert not is_inside((0, 11), 10)


@pytest.mark.parametrize("mode", PADS)
@pytest.mark.parametrize(("side", "before", "after"), [(7, 3, 2), (7, 6, 6), (4, 0, 3), (5, 2, 0)])
def test_paddings_show_these_pixels(side: int, before: int, after: int, mode: str) -> None:
    line = torch.arange(side, dtype=torch.float64)[None, None]
    padded = F.pad(line, (before, after), PADS[mode])
    for start, stop in every_span(side + before + after):
        span = start - before, stop - before
        found = padded_span(span, side, mode)
        read = read_for(lambda x: F.pad(x, (before, after), PADS[mode]), side, (start, stop))
        if read:
            assert found == (min(read), max(read) + 1)
        if mode != "zeros":
            places = [shown(position, side, mode) for position in range(*span)]
            assert places == padded[0, 0, start:stop].long().tolist()
            assert padded_span(span, side, mode) == (min(places), max(places) + 1)
            assert shown(span[0], side, mode) == padded[0, 0, start]


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (4, 2, 1), (3, 3, 2), (2, 1, 3), (1, 2, 1)]
)
def test_convolutions_read_these_pixels(kernel: int, stride: int, dilation: int) -> None:
    weight = torch.rand(1, 1, kernel, dtype=torch.float64).add(1)

    def operator(x: Tensor) -> Tensor:
        return F.conv1d(x, weight, stride=stride, dilation=dilation)

    for span in every_span(operator(torch.zeros(1, 1, 13, dtype=torch.float64)).shape[2]):
        read = read_for(operator, 13, span)
        assert convolved_span(span, kernel, stride, dilation) == (min(read), max(read) + 1)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 2, 1, 1), (4, 2, 1, 1), (4, 2, 3, 1), (3, 3, 0, 1), (2, 1, 0, 3), (5, 2, 4, 2), (7, 3, 2, 1)],
)
def test_transposed_convolutions_read_these_pixels(
    kernel: int, stride: int, padding: int, dilation: int, more: int
) -> None:
    weight = torch.rand(1, 1, kernel, dtype=torch.float64).add(1)
    more = min(more, max(stride, dilation) - 1)

    def operator(x: Tensor) -> Tensor:
        sizes = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": more}
        return F.conv_transpose1d(x, weight, None, **sizes)

    side = 8
    for span in every_span(operator(torch.zeros(1, 1, side, dtype=torch.float64)).shape[2]):
        read = read_for(operator, side, span)
        found = transposed_span(span, side, (kernel, stride, padding, dilation))
        assert 0 <= found[0] < found[1] <= side
        if read and dilation == 1:
            assert found == (min(read), max(read) + 1)
        elif read:  # between the pixels that a dilated kernel writes, others are read as well
            assert found[0] <= min(read)
            assert found[1] > max(read)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (1, 3), (2, 3)])
def test_between_what_a_transposed_convolution_writes_the_pixel_before_is_read(
    kernel: int, stride: int
) -> None:
    """The result for what is read must not begin after the span."""
    for start, stop in every_span(10):
        found = transposed_span((start, stop), 8, (kernel, stride, 0, 1))
        assert found[0] * stride <= start
        assert found[1] > found[0]
