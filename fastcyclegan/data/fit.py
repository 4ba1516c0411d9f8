"""Resize, crop and flip images to what the settings of a run and its networks need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fastcyclegan.config import DataConfig, ModelConfig, Preprocess
from fastcyclegan.data.image_file import (
    BadImageError,
    LackOfMemoryError,
    Pixels,
    Size,
    Warn,
    open_image,
)
from fastcyclegan.data.sample_plan import View
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize, sides_of


def _nearest_multiple(side: int, multiple: int) -> int:
    """Round ``side`` to the nearest multiple of ``multiple``, but not below the minimum for a network.

    Ties round to even, as in the official code.
    """
    return max(round(side / multiple) * multiple, multiple, 8)


FILE_CHANNELS = (1, 3)
"""The numbers of channels of images that are read from files: gray and colour."""


def require_file_channels(config: ModelConfig) -> None:
    """Raise UserError if the images of the networks of ``config`` cannot be read from files."""
    for name, channels in (("input_nc", config.input_nc), ("output_nc", config.output_nc)):
        if channels not in FILE_CHANNELS:
            raise UserError(
                f"{name} is {channels}, but images from files have 3 channels (colour) or 1 (gray): pass"
                " loaders of your own to CycleGAN.fit"
            )


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

    The mode ``preprocess`` determines their size, and whether they are cropped to ``crop_size``: the side of
    a square, or height and width. ``channels`` is 1 or 3, and ``any_size`` is as in
    ``image_file.open_image``. Two modes are not available on the command line: "keep", the default, neither
    resizes nor crops, and "square" resizes to ``load_size`` x ``load_size``.
    """

    preprocess: Preprocess | Literal["keep", "square"] = "keep"
    load_size: int = 0
    crop_size: CropSize = 0
    channels: int = 3
    multiple: int = 4
    any_size: bool = False

    @classmethod
    def of(cls, config: DataConfig, channels: int = 3, multiple: int = 4) -> Fit:
        """Return the fit for ``config`` and a network that needs sides that are multiples of ``multiple``."""
        sizes = config.load_size, config.crop_size
        return cls(config.preprocess, *sizes, channels, multiple, config.allow_decompression_bombs)

    def resized(self, size: Size) -> Size:
        """Return the (width, height) of an image of ``size`` after the resize, before the crop."""
        width, height = size
        load, (crop_height, _) = self.load_size, sides_of(self.crop_size)
        match self.preprocess:
            case "resize_and_crop" | "square":
                return load, load
            case "crop" | "keep":
                return size
            case "scale_width_and_crop":
                return load, int(max(load * height / width, crop_height))
            case "scale_width":
                height = int(max(load * height / width, crop_height))
                return _nearest_multiple(load, self.multiple), _nearest_multiple(height, self.multiple)
            case _:
                return _nearest_multiple(width, self.multiple), _nearest_multiple(height, self.multiple)

    @property
    def crop(self) -> Size | None:
        """The (width, height) of the random crop, or None if there is no crop."""
        if self.preprocess.endswith("crop"):
            height, width = sides_of(self.crop_size)
            return width, height
        return None

    def box(self, size: Size, view: View | None) -> tuple[int, int, int, int]:
        """Return the (left, top, width, height) that ``view`` selects from a resized image of ``size``.

        Without a view, this is the whole image.
        """
        if view is None or self.crop is None:
            return 0, 0, size[0], size[1]
        width, height = self.crop
        left, top = int(view.x * (size[0] - width + 1)), int(view.y * (size[1] - height + 1))
        return left, top, width, height

    def too_small(self, size: Size) -> str:
        """Return why an image of ``size`` is too small to crop, or "" if it is not."""
        if self.crop is None:
            return ""
        width, height = self.crop
        resized = self.resized(size)
        if resized[0] >= width and resized[1] >= height:
            return ""
        crop = f"{width} pixels" if width == height else f"{width}x{height} pixels"
        return f"{size[0]}x{size[1]} is too small for a crop of {crop}"


def load_pixels(path: Path | str, fit: Fit, warn: Warn | None = None) -> Pixels:
    """Decode and resize an image file to [H, W, C] uint8, but do not crop or flip it.

    ``warn`` is as in ``open_image``. Raises BadImageError if the image cannot be used, LackOfMemoryError if
    it does not fit into the memory, and another UserError if the machine has no file descriptors left.
    """
    image = open_image(path, fit.channels, warn, fit.any_size)
    reason = fit.too_small(image.size)
    if reason:
        raise BadImageError(path, reason)
    size = fit.resized(image.size)
    try:
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
    except MemoryError:
        raise LackOfMemoryError(
            path, f"cannot be resized to {size[0]}x{size[1]} pixels: out of memory"
        ) from None
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
