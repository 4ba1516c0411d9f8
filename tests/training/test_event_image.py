"""The images in the events are small, and their size and number are bounded."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.training.event_image import GROWTH, encode, most_bytes, most_images, reduced


def test_wide_images_are_reduced() -> None:
    assert reduced(Image.new("L", (1024, 300))).size == (512, 150)
    assert reduced(Image.new("RGB", (9000, 3))).size == (512, 1)
    image = Image.new("RGB", (512, 900), "red")
    assert reduced(image).tobytes() == image.tobytes()


def test_the_smaller_format_is_chosen() -> None:
    flat, noise = Image.new("RGB", (64, 64), "red"), Image.effect_noise((64, 64), 90).convert("RGB")
    for image, name in ((flat, "PNG"), (noise, "JPEG")):
        with Image.open(io.BytesIO(encode(image))) as read:
            assert (read.format, read.size) == (name, (64, 64))


@pytest.mark.parametrize("side", [(20, 10), (300, 300), (1564, 1062), (3000, 3000)], ids=str)
def test_the_bound_of_the_size_holds_for_noise(side: tuple[int, int]) -> None:
    """The reduced copy of noise is smoother, so it is further below the bound."""
    pixels = np.random.default_rng(0).integers(0, 256, (side[1], side[0], 3), np.uint8)
    image = reduced(Image.fromarray(pixels))
    bound = most_bytes(*side)
    assert 0.2 * bound <= len(encode(image)) <= bound


@pytest.mark.parametrize("last", [1, 20, 21, 100, 5000])
def test_the_bound_of_the_number_holds(last: int) -> None:
    count, following = 0, 0.0
    for n in range(1, last + 1):
        if n >= following:
            count, following = count + 1, n * GROWTH
    assert count <= most_images(last) <= 1.2 * count
