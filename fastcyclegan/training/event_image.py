"""Reduce the images in tensorboard events, which cannot be removed again, in size and in number."""

from __future__ import annotations

import io
import math

from PIL import Image

WIDTH = 512
"""The largest width of an image in pixels."""
GROWTH = 1.05
"""The iterations of consecutive images have at least this ratio."""


def reduced(image: Image.Image) -> Image.Image:
    """Return ``image`` in RGB and at most 512 pixels wide."""
    if image.width > WIDTH:
        height = max(1, round(image.height * WIDTH / image.width))
        image = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    return image.convert("RGB")


def encode(image: Image.Image) -> bytes:
    """Return ``image`` as a JPEG file, or as a PNG file if that is smaller."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    image.save(jpeg, format="JPEG", quality=85)
    image.save(png, format="PNG")
    return min(jpeg.getvalue(), png.getvalue(), key=len)


def most_images(iteration: int) -> int:
    """Return how many images there can be up to ``iteration``."""
    # Up to this iteration each one can have an image, because each is larger by at least a twentieth.
    all_until = math.ceil(1 / (GROWTH - 1))
    if iteration <= all_until:
        return iteration
    return all_until + math.ceil(math.log(iteration / all_until, GROWTH))


def most_bytes(width: int, height: int) -> int:
    """Return the largest size of the reduced copy of an image of ``width`` x ``height`` pixels.

    Noise takes less than a byte per pixel as JPEG, in addition to its header.
    """
    scale = min(1.0, WIDTH / max(width, 1))
    return 1024 + math.ceil(width * scale * height * scale)
