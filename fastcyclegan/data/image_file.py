"""Decode an image file into upright 8-bit pixels, convert its channels, and resize, crop and flip it.

Decoding deliberately differs from the official code in three ways. EXIF rotation is honoured. 16-bit images
are scaled to 8 bits (Pillow's own conversion clips them to white). Transparent pixels show a white background
(dropping alpha would show whatever colour is stored there).
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from fastcyclegan.config import DataConfig, ModelConfig, Preprocess
from fastcyclegan.data.sample_plan import View
from fastcyclegan.errors import UserError, system_reason

# Errors of the operating system that do not depend on the file: it has no file descriptors or memory left.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff", ".webp"})
Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""(width, height), in Pillow's order."""

ORIENTATION = 0x0112
JPEG_END, PNG_END = b"\xff\xd9", b"\0\0\0\0IEND\xaeB`\x82"
# PNG chunks that make Pillow rotate an image, choose one of several images, or treat it as transparent.
# Pillow also finds them after the pixels, so the whole file is searched.
PNG_ODD = (b"eXIf", b"acTL", b"XML:com.adobe.xmp", b"tRNS")


class BadImageError(UserError):
    """An image that cannot be used; the message names the file and the problem."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Convert an image in one of Pillow's integer modes to 8-bit gray.

    Pillow uses these modes for 16-bit files and for 32-bit files. 32-bit values raise ValueError. The value
    that a PNG declares transparent becomes white.
    """
    values = np.asarray(image).astype(np.int64)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values = np.where(values == transparent, 65535, values)
    if ((values < 0) | (values > 65535)).any():
        raise ValueError("32-bit values are not supported; convert the image to 8 or 16 bits per channel")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """Convert ``image`` to mode RGB or, for 1 channel, to L. Transparent pixels become white."""
    if image.mode == "F":
        raise ValueError(
            "floating-point values are not supported; convert the image to 8 or 16 bits per channel"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _sixteen_bits(image)
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """Turn ``image`` upright by its EXIF data and convert it to mode RGB (3 channels) or L (1).

    Raises BadImageError if that fails.
    """
    try:
        return _eight_bits(ImageOps.exif_transpose(image), channels)
    except (ValueError, OSError) as error:
        raise BadImageError("the image", " ".join(str(error).split())) from None


def open_image(path: Path | str, channels: int = 3) -> Image.Image:
    """Decode an image file and return it upright, in mode RGB (3 channels) or L (1).

    Raises BadImageError for every fault of the file, and another UserError if the machine has no file
    descriptors or memory left.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # reading a pipe would block forever
            raise ValueError("not a regular file")
        with Image.open(path) as image:
            image.load()
            return _eight_bits(ImageOps.exif_transpose(image), channels)
    except FileNotFoundError:
        raise BadImageError(path, "no such file") from None
    except Image.UnidentifiedImageError:
        raise BadImageError(path, "not an image that Pillow can read") from None
    except Exception as error:
        raise reading_error(path, error) from None


def reading_error(path: Path | str, error: Exception) -> UserError:
    """Return the error to raise if ``error`` occurred while the file ``path`` was read.

    It is a BadImageError, unless the machine has no memory or file descriptors left.
    """
    if isinstance(error, MemoryError):
        return UserError(f"{path} cannot be read: out of memory")
    if isinstance(error, OSError) and error.errno in EXHAUSTED:
        return UserError(f"{path} cannot be read: {system_reason(error)}")
    # Pillow's decoders raise almost anything on a broken file: OSError, SyntaxError, struct.error, EOFError,
    # Pillow's decompression bomb error.
    reason = " ".join(str(error).split())
    if not reason:
        reason = type(error).__name__
    return BadImageError(path, reason)


def read_header(data: bytes) -> tuple[Size, bool]:
    """Return the stored size of an encoded image, and whether the image is plain.

    A plain image is one that every decoder reads exactly as ``open_image`` does: a complete JPEG or PNG of
    8-bit colour or gray, upright and opaque. Pixels are not decoded. For data that is not an image, the size
    is (0, 0).
    """
    try:
        with Image.open(BytesIO(data)) as image:
            plain = image.mode in ("RGB", "L") and _is_plain(image, data)
            return image.size, plain
    except Exception:  # Pillow can raise anything here; the code that decodes the file reports it
        return (0, 0), False


def _is_plain(image: ImageFile.ImageFile, data: bytes) -> bool:
    if image.format in ("JPEG", "MPO"):
        # Adobe's RGB files contain no luma, but some decoders treat them as if they did.
        if image.getexif().get(ORIENTATION, 1) != 1 or image.info.get("adobe_transform", 1) == 0:
            return False
        return data.endswith(JPEG_END)
    if image.format == "PNG":
        raw_modes = [tile[3] for tile in image.tile]  # differ from image.mode in 16-bit and 4-bit files
        if raw_modes != [image.mode] or any(chunk in data for chunk in PNG_ODD):
            return False
        return data.endswith(PNG_END)
    return False


def _nearest_multiple(side: int, multiple: int) -> int:
    """Round ``side`` to the nearest multiple of ``multiple``, but not below the minimum for a network.

    Ties round to even, as in the official code.
    """
    return max(round(side / multiple) * multiple, multiple, 8)


@dataclass(frozen=True)
class ImageRequirements:
    """Requirements of the networks on their images.

    Height and width must be multiples of ``size_multiple`` and at least ``least_side`` pixels. ``channels``
    contains the numbers of channels of A and B.
    """

    size_multiple: int = 4
    least_side: int = 8
    channels: tuple[int, int] = (3, 3)

    @classmethod
    def of(cls, config: ModelConfig) -> ImageRequirements:
        """Return the requirements of the networks of ``config``."""
        return cls(config.size_multiple, config.least_side, (config.input_nc, config.output_nc))


@dataclass(frozen=True)
class Fit:
    """Settings that determine how the images of one domain are resized, cropped and converted.

    The mode ``preprocess`` determines their size, and whether they are cropped to ``crop_size`` x
    ``crop_size``. ``channels`` is 1 or 3. Two modes are not available on the command line: "keep", the
    default, neither resizes nor crops, and "square" resizes to ``load_size`` x ``load_size``.
    """

    preprocess: Preprocess | Literal["keep", "square"] = "keep"
    load_size: int = 0
    crop_size: int = 0
    channels: int = 3
    multiple: int = 4

    @classmethod
    def of(cls, config: DataConfig, channels: int = 3, multiple: int = 4) -> Fit:
        """Return the fit for ``config`` and a network that needs sides that are multiples of ``multiple``."""
        return cls(config.preprocess, config.load_size, config.crop_size, channels, multiple)

    def resized(self, size: Size) -> Size:
        """Return the (width, height) of an image of ``size`` after the resize, before the crop."""
        width, height = size
        load, crop = self.load_size, self.crop_size
        match self.preprocess:
            case "resize_and_crop" | "square":
                return load, load
            case "crop" | "keep":
                return size
            case "scale_width_and_crop":
                return load, int(max(load * height / width, crop))
            case "scale_width":
                height = int(max(load * height / width, crop))
                return _nearest_multiple(load, self.multiple), _nearest_multiple(height, self.multiple)
            case _:
                return _nearest_multiple(width, self.multiple), _nearest_multiple(height, self.multiple)

    @property
    def side(self) -> int | None:
        """The side of the random crop, or None if there is no crop."""
        if self.preprocess.endswith("crop"):
            return self.crop_size
        return None

    def box(self, size: Size, view: View | None) -> tuple[int, int, int, int]:
        """Return the (left, top, width, height) that ``view`` selects from a resized image of ``size``.

        Without a view, this is the whole image.
        """
        width, height = size
        if view is None or self.side is None:
            return 0, 0, width, height
        side = self.side
        return int(view.x * (width - side + 1)), int(view.y * (height - side + 1)), side, side

    def too_small(self, size: Size) -> str:
        """Return why an image of ``size`` is too small to crop, or "" if it is not."""
        if self.side is not None and min(self.resized(size)) < self.side:
            return f"{size[0]}x{size[1]} is too small for a crop of {self.side} pixels"
        return ""


def load_pixels(path: Path | str, fit: Fit) -> Pixels:
    """Decode and resize an image file to [H, W, C] uint8, but do not crop or flip it.

    Raises BadImageError if the image cannot be used, and another UserError if the machine has no file
    descriptors or memory left.
    """
    image = open_image(path, fit.channels)
    reason = fit.too_small(image.size)
    if reason:
        raise BadImageError(path, reason)
    size = fit.resized(image.size)
    try:
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    except MemoryError as error:
        raise reading_error(path, error) from None
    if fit.channels == 1:
        return pixels[:, :, None]
    return pixels


def take_view(pixels: Pixels, fit: Fit, view: View | None) -> Pixels:
    """Crop and flip resized ``pixels`` [H, W, C] according to ``view``; the result is a numpy view."""
    left, top, width, height = fit.box((pixels.shape[1], pixels.shape[0]), view)
    pixels = pixels[top : top + height, left : left + width]
    if view is not None and view.flip:
        return pixels[:, ::-1]
    return pixels
