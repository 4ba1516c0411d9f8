"""Resize, crop and flip images to what the settings of a run and its networks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from fastcyclegan.data.halves import Half, half_box, half_size, why_not_halves
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
from fastcyclegan.settings.data import DataConfig, Preprocess
from fastcyclegan.settings.networks import ModelConfig


def _nearest_multiple(side: int, multiple: int) -> int:
    """Round ``side`` to the nearest multiple of ``multiple``, but not below the minimum for a network.

    Ties round to even, as in the official code.
    """
    return max(round(side / multiple) * multiple, multiple, 8)


FILE_CHANNELS = (1, 3)
"""The numbers of channels of images that are read from files: gray and colour."""


def require_file_channels(channels: Mapping[str, int]) -> None:
    """Raise UserError if images of these numbers of ``channels`` cannot be read from files.

    The keys are what the message calls the numbers, such as "input_nc".
    """
    for name, count in channels.items():
        if count not in FILE_CHANNELS:
            raise UserError(
                f"{name} is {count}, but images from files have 3 channels (colour) or 1 (gray): pass"
                " loaders of your own to fit in Python"
            )


@dataclass(frozen=True)
class ImageRequirements:
    """Requirements of the networks on their images.

    Height and width must be multiples of ``size_multiple`` and at least ``least_side`` pixels. ``channels``
    contains the numbers of channels of A and B, or only of A for single images.
    """

    size_multiple: int = 4
    least_side: int = 8
    channels: tuple[int, ...] = (3, 3)

    @classmethod
    def of(cls, config: ModelConfig) -> ImageRequirements:
        """Return the requirements of the networks of ``config``."""
        return cls(config.size_multiple, config.least_side, (config.input_nc, config.output_nc))


@dataclass(frozen=True)
class Fit:
    """Settings that determine how the images of one domain are resized, cropped and converted.

    The mode ``preprocess`` determines their size, and whether they are cropped to ``crop_size``: the side of
    a square, or height and width. ``channels`` is 1 or 3, and ``any_size`` is as in
    ``image_file.open_image``. Three modes are not available on the command line: "keep", the default, neither
    resizes nor crops, "square" resizes to ``load_size`` x ``load_size``, and "exact" resizes to
    ``crop_size``.
    """

    preprocess: Preprocess | Literal["keep", "square", "exact"] = "keep"
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
        load, (crop_height, crop_width) = self.load_size, sides_of(self.crop_size)
        match self.preprocess:
            case "resize_and_crop" | "square":
                return load, load
            case "exact":
                return crop_width, crop_height
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


def why_not_usable(size: Size, fit: Fit, half: Half | None = None) -> str:
    """Return why an image of ``size``, or a ``half`` of it, cannot be used, or "" if it can."""
    if half is None:
        return fit.too_small(size)
    reason = why_not_halves(size)
    if reason:
        return reason
    reason = fit.too_small(half_size(size, half))
    if reason:
        return f"cut in halves, {reason}"
    return ""


def load_pixels(path: Path | str, fit: Fit, warn: Warn | None = None, half: Half | None = None) -> Pixels:
    """Decode and resize an image file to [H, W, C] uint8, but do not crop or flip it.

    If ``half`` is given, that half of the image is resized. ``warn`` is as in ``open_image``. Raises
    BadImageError if the image cannot be used, LackOfMemoryError if it does not fit into the memory, and
    another UserError if the machine has no file descriptors left.
    """
    return load_halves(path, fit, (half,), warn)[0]


def load_halves(
    path: Path | str, fit: Fit, halves: Sequence[Half | None], warn: Warn | None = None
) -> list[Pixels]:
    """Decode an image file once, and return what ``load_pixels`` returns for each of ``halves``."""
    image = open_image(path, fit.channels, warn, fit.any_size)
    return [_resized(path, image, fit, half) for half in halves]


def _resized(path: Path | str, image: Image.Image, fit: Fit, half: Half | None) -> Pixels:
    reason = why_not_usable(image.size, fit, half)
    if reason:
        raise BadImageError(path, reason)
    size = fit.resized(half_size(image.size, half))
    try:
        if half is not None:
            image = image.crop(half_box(image.size, half))
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
