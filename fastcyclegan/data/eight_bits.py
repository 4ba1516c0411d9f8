"""Convert images of any mode to 8-bit RGB or gray."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

_BAND_PIXELS = 2**20
"""Pixels that are converted at a time, so that no second copy of a large image is needed."""


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes (left, top, right, bottom) of horizontal bands that cover ``image``."""
    rows = max(1, _BAND_PIXELS // max(image.width, 1))
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Convert an image of 16-bit values to 8-bit gray.

    The value that a PNG declares transparent becomes white.
    """
    transparent = image.info.get("transparency")
    gray = Image.new("L", image.size)
    for box in _bands(image):
        values = np.asarray(image.crop(box)).astype(np.uint32)
        if isinstance(transparent, int):
            values = np.where(values == transparent, 65535, values)
        gray.paste(Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)), box)
    return gray


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image with transparency to ``mode``, in front of a white background."""
    flat = Image.new(mode, image.size)
    for box in _bands(image):
        band = image.crop(box)
        if band.mode == "La":  # Pillow converts this mode only to LA
            band = band.convert("LA")
        band = band.convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert(mode), box)
    return flat


def has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether ``image`` has one channel of 16-bit values."""
    # Earlier versions of Pillow use mode I for 16-bit PNG files.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def require_supported(image: Image.Image) -> None:
    """Raise ValueError if the values of ``image`` have no defined range."""
    kind = ""
    if image.mode == "F":
        kind = "floating-point values"
    elif image.mode == "I" and not has_sixteen_bits(image):
        kind = "32-bit values"
    if kind:
        raise ValueError(f"{kind} are not supported; convert the image to 8 or 16 bits per channel")


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Convert ``image`` to mode RGB or, for 1 channel, to L. Transparent pixels become white."""
    mode = "L" if channels == 1 else "RGB"
    if has_sixteen_bits(image):
        image = _sixteen_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return _on_white(image, mode)
    if image.mode == mode:
        return image
    return image.convert(mode)


def brightest_of(image: Image.Image) -> int:
    """Return the highest value of a 16-bit image after scaling to 8 bits. Pillow has scaled colour images."""
    if has_sixteen_bits(image):
        highest = int(np.asarray(image).max())  # Pillow finds no extrema in big-endian values
        return (highest * 255 + 32767) // 65535
    return int(np.max(image.getextrema()))


def is_dark(brightest: int) -> bool:
    """Return whether 16-bit values of at most ``brightest`` of 255 probably have only 14 bits or fewer."""
    return brightest <= 64


def dark_values(images: str, brightest: int) -> str:
    """Return a warning about ``images`` whose 16-bit values are at most ``brightest`` of 255."""
    bits = 8 + math.ceil(math.log2(max(brightest, 1)))
    return (
        f"the brightest value of {images} is {brightest} of 255 after scaling to 8 bits, as if the files"
        f" stored {bits}-bit values; multiply those by {2 ** (16 - bits)}"
    )
