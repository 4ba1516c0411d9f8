"""Convert between uint8 pixels and floats in [-1, 1], and draw images and labelled grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastcyclegan.tensor_files import write_atomically

_LABEL, _GAP = 18, 4


def to_unit_range(pixels: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 pixels [N, H, W, C] to floats in [-1, 1] on ``device``.

    The result is [N, C, H, W] in channels_last memory.
    """
    if device.type == "cpu":
        # Use numpy, as loaders do for all pixel work on the host, because it stays in this thread. torch's
        # threads spin while they wait for one another, on cores that the loader's threads and processes need.
        # With two cores, that took a third of all processor time.
        values = pixels.numpy().astype(np.float32)
        values /= np.float32(127.5)
        values -= np.float32(1)
        return torch.from_numpy(values).permute(0, 3, 1, 2)
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


class NoNumbersError(ValueError):
    """An image contains NaN or infinity, which no pixel can show."""


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Convert images [N, C, H, W] in [-1, 1] to uint8 pixels [N, H, W, C], rounded and clamped.

    The official code truncates instead of rounding. Raises NoNumbersError if a value is not finite.
    """
    if not images.isfinite().all():
        raise NoNumbersError("to_pixels: the images must be finite, got NaN or infinity")
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_image(pixels: NDArray[np.uint8]) -> Image.Image:
    """Convert uint8 pixels [H, W, C] with 1 or 3 channels to a Pillow image."""
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return Image.fromarray(pixels)


def _shown(pixels: NDArray[np.uint8]) -> Image.Image:
    """Return an image that shows ``pixels`` [H, W, C] with any number of channels, as ``draw_grid`` does."""
    count = 3 if pixels.shape[2] >= 3 else 1
    return to_image(np.ascontiguousarray(pixels[:, :, :count]))


def draw_grid(columns: Mapping[str, Sequence[NDArray[np.uint8]]]) -> Image.Image:
    """Draw a grid with one labelled column per entry of ``columns`` and one row per image.

    Images are [H, W, C] uint8. Those in the same row may differ in size. The first three channels are shown
    as red, green and blue; of one or two channels, the first as gray.
    """
    font = ImageFont.load_default(12)
    widths = []
    for label, images in columns.items():
        widest = max(image.shape[1] for image in images)
        widths.append(max(widest, math.ceil(font.getlength(label)) + 2))
    heights = []
    for row in zip(*columns.values(), strict=True):
        heights.append(max(image.shape[0] for image in row))
    width = sum(widths) + _GAP * (len(widths) + 1)
    height = _LABEL + sum(heights) + _GAP * (len(heights) + 1)
    grid = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(grid)
    left = _GAP
    for label, width, images in zip(columns, widths, columns.values(), strict=True):
        pen.text((left, 2), label, fill="black", font=font)
        top = _LABEL + _GAP
        for image, height in zip(images, heights, strict=True):
            grid.paste(_shown(image).convert("RGB"), (left, top))
            top += height + _GAP
        left += width + _GAP
    return grid


def save_image(image: Image.Image, path: Path) -> None:
    """Write ``image`` to ``path`` as PNG, atomically."""
    write_atomically(path, lambda partial: image.save(partial, format="PNG"))
