"""Pairs of images for the tests of aligned data, and what a loader must yield of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcyclegan.config import DataConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.loader import Source, sources_of
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import find_images
from tests.conftest import scene

# Sizes of a half: square, tall, wide, larger and smaller than the size that images are resized to.
SIZES = [(64, 64), (65, 131), (150, 70)]


def halves(seed: int, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Return two images of ``size`` that belong together."""
    rng = np.random.default_rng(seed)
    return scene(rng, size), scene(rng, size)


def joined(a: Image.Image, b: Image.Image) -> Image.Image:
    """Return an image with ``a`` on the left of ``b``."""
    image = Image.new("RGB", (a.width + b.width, a.height))
    image.paste(a, (0, 0))
    image.paste(b, (a.width, 0))
    return image


def write_side_by_side(root: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Write pairs side by side to ``root``/train, as PNG, JPEG, gray, WebP and turned files.

    Returns ``root``.
    """
    folder = root / "train"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for n, size in enumerate(sizes):
        image = joined(*halves(n, size))
        image.save(folder / f"{n}.png")
        image.save(folder / f"{n}j.jpg", quality=92)
        image.convert("L").save(folder / f"{n}g.png")
    image.save(folder / "w.webp")
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "t.jpg", exif=exif)
    return root


def write_two_folders(root: Path, sizes: list[tuple[int, int]] = SIZES) -> Path:
    """Write pairs to ``root``/trainA and trainB, with various names and formats. Returns ``root``."""
    for side in "AB":
        (root / f"train{side}").mkdir(parents=True)
    for n, size in enumerate(sizes):
        a, b = halves(n, size)
        a.save(root / "trainA" / f"{n}.png")
        b.save(root / "trainB" / f"{n}.jpg", quality=92)
        a.convert("L").save(root / "trainA" / f"{n}g_A.jpg")
        b.save(root / "trainB" / f"{n}g_B.webp", lossless=True)
    return root


def aligned_sources(
    root: Path, data: DataConfig, channels: tuple[int, ...] = (3, 3)
) -> tuple[dict[str, Source], Plan]:
    """Return the sources of the pairs in ``root``, and a plan of their samples."""
    required = ImageRequirements(channels=channels)
    images = find_images(data, 0, print, None, required)
    sources = sources_of(images, data, required)
    count = len(images.train_A)
    return sources, Plan(5, count, count, data.batch_size, paired=True)


def expected_image(source: Source, batch: Batch, side: str, row: int) -> Tensor:
    """Compute image ``row`` of ``batch`` with Pillow alone: cut, resize, crop and flip; [C, H, W] levels."""
    fit, view = source.fit, batch.samples[row].view(side)
    image = Image.open(batch.paths[side][row])
    if image.getexif().get(0x0112) == 6:
        image = image.transpose(Image.Transpose.ROTATE_270)
    image = image.convert("L" if fit.channels == 1 else "RGB")
    if source.half is not None:
        middle = image.width // 2
        left = 0 if source.half == "left" else middle
        image = image.crop((left, 0, left + middle, image.height))
    size = fit.resized(image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if fit.crop is not None:
        width, height = fit.crop
        left, top = int(view.x * (size[0] - width + 1)), int(view.y * (size[1] - height + 1))
        image = image.crop((left, top, left + width, top + height))
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image))
    return pixels.view(image.height, image.width, fit.channels).permute(2, 0, 1)
