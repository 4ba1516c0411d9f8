"""One picture file to pixels: upright, in 8 bits, with the network's channels, and resized as the preprocess mode says.

Differences from the official code, each on purpose: EXIF rotation is honoured; 16-bit pictures are scaled to 8 bits (Pillow's own
conversion clips them to white); transparent pixels show a white ground (dropping alpha shows what happens to lie under it).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastcyclegan.config import DataConfig
from fastcyclegan.data.plan import View
from fastcyclegan.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})
Pixels = NDArray[np.uint8]


class BadPictureError(UserError):
    """A picture that cannot be used; the message names the file and what is wrong with it."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[BadPictureError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Return a gray 8-bit picture for one of Pillow's integer modes, which hold 16-bit files (and 32-bit ones, which are refused).

    The value that a PNG declares transparent becomes white.
    """
    values = np.asarray(image).astype(np.int64)
    if isinstance(transparent := image.info.get("transparency"), int):
        values = np.where(values == transparent, 65535, values)
    if ((values < 0) | (values > 65535)).any():
        raise ValueError("32-bit values; convert it to 8 or 16 bits a channel")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Return ``image`` in mode RGB or, for 1 channel, L."""
    if image.mode == "F":
        raise ValueError("floating-point values; convert it to 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _sixteen_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def open_picture(path: Path | str, channels: int = 3) -> Image.Image:
    """Return the decoded picture, upright, in mode RGB (3 channels) or L (1). Raises BadPictureError for whatever goes wrong."""
    try:
        with Image.open(path) as image:
            image.load()
            return _eight_bits(ImageOps.exif_transpose(image), channels)
    except FileNotFoundError:
        raise BadPictureError(path, "no such file") from None
    except Image.UnidentifiedImageError:
        raise BadPictureError(path, "not a picture that Pillow can read") from None
    except MemoryError:
        raise BadPictureError(path, "too large for the memory") from None
    # Pillow's decoders raise nearly anything on a broken file (OSError, SyntaxError, struct.error, EOFError, its bomb error).
    except Exception as error:
        raise BadPictureError(path, " ".join(str(error).split()) or type(error).__name__) from None


def _nearest_multiple(side: int, multiple: int) -> int:
    """Round to the nearest multiple, half to even as the official code does, and never below what a network can take."""
    return max(round(side / multiple) * multiple, multiple, 8)


def resized(size: tuple[int, int], config: DataConfig, multiple: int = 4) -> tuple[int, int]:
    """Return the (width, height) that a picture of ``size`` has after the resize, before the crop."""
    width, height = size
    load, crop = config.load_size, config.crop_size
    match config.preprocess:
        case "resize_and_crop":
            return load, load
        case "crop":
            return size
        case "scale_width_and_crop":
            return load, int(max(load * height / width, crop))
        case "scale_width":
            height = int(max(load * height / width, crop))
            return _nearest_multiple(load, multiple), _nearest_multiple(height, multiple)
        case _:
            return _nearest_multiple(width, multiple), _nearest_multiple(height, multiple)


def crop_side(config: DataConfig) -> int | None:
    """Return the side of the random crop, None where the preprocess mode has none."""
    return config.crop_size if config.preprocess.endswith("crop") else None


def load_pixels(path: Path | str, config: DataConfig, channels: int, multiple: int = 4) -> Pixels:
    """Return the decoded, resized picture as [H, W, C] uint8, before its crop and flip. Raises BadPictureError."""
    image = open_picture(path, channels)
    size = resized(image.size, config, multiple)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    side = crop_side(config)
    if side is not None and min(image.size) < side:
        raise BadPictureError(path, f"{image.width}x{image.height} is smaller than the crop of {side}")
    pixels = np.asarray(image)
    return pixels[:, :, None] if channels == 1 else pixels


def take_view(pixels: Pixels, view: View, side: int | None) -> Pixels:
    """Return the crop of ``side`` (None: everything) of ``pixels`` [H, W, C] that ``view`` names, mirrored if it says so; a numpy view."""
    if side is not None:
        height, width = pixels.shape[:2]
        top, left = int(view.y * (height - side + 1)), int(view.x * (width - side + 1))
        pixels = pixels[top : top + side, left : left + side]
    return pixels[:, ::-1] if view.flip else pixels
