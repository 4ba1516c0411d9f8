"""Tests of converting images to pixels (rounding) and of image grids (every image is in its place)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastcyclegan.data.pixels import NoNumbersError, draw_grid, to_pixels


def test_pixels_are_rounded_and_clamped() -> None:
    values = torch.tensor([-1.5, -1.0, -1 + 0.9 / 127.5, 0.0, 1.0, 7.0]).view(1, 1, 1, -1)
    assert to_pixels(values).flatten().tolist() == [
        0,
        0,
        1,
        128,
        255,
        255,
    ]  # the official code truncates the third to 0
    every = torch.arange(256).view(1, 1, 16, 16) / 127.5 - 1
    assert np.array_equal(to_pixels(every).reshape(-1), np.arange(256))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_pixel(value: float) -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, 2, 3] = value
    with pytest.raises(NoNumbersError, match="the images must be finite, got NaN or infinity"):
        to_pixels(images)


def test_grid_shows_every_image_in_its_place() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    images = [
        [np.broadcast_to(colours[row, column], (10 + 5 * row, 12, 3)) for row in range(2)]
        for column in range(2)
    ]
    gray = [np.full((8, 8, 1), 77, dtype=np.uint8)] * 2
    grid = np.asarray(draw_grid({"first": images[0], "a much longer label": images[1], "gray": gray}))
    seen = {tuple(c) for c in grid.reshape(-1, 3)}
    assert {tuple(c) for c in colours.reshape(-1, 3)} | {(77, 77, 77)} <= seen
    for row in range(2):
        places = np.argwhere((grid == colours[row, 1]).all(-1))
        assert len(places) == (10 + 5 * row) * 12
        assert places[:, 1].min() > np.argwhere((grid == colours[row, 0]).all(-1))[:, 1].max()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_grids_show_any_number_of_channels(channels: int) -> None:
    """The first three as a colour, or the first as gray."""
    image = np.broadcast_to(np.arange(10, 10 + channels, dtype=np.uint8), (5, 6, channels))
    wanted = (10, 11, 12) if channels >= 3 else (10, 10, 10)
    grid = np.asarray(draw_grid({"": [image]}))  # without a label, which is drawn in all grays
    assert (grid == wanted).all(-1).sum() == 5 * 6
