"""Images for the tests of DALI, and a measure of the difference between two decoded images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastcyclegan.config import Preprocess
from tests.conftest import scene

MODES: list[Preprocess] = ["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
# Odd, tall and wide images, some larger and some smaller than the size that they are resized to.
SIZES = [(97, 64), (64, 64), (65, 131), (300, 70), (256, 256), (71, 66)]


def varied(folder: Path, seed: int) -> list[Path]:
    """Write images of all sizes as JPEG and PNG, in colour and gray, and one of each kind of unusual file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for n, size in enumerate(SIZES):
        image = scene(rng, size)
        image.save(folder / f"{n}.jpg", quality=92, subsampling=n % 3, progressive=n % 2 == 1)
        image.save(folder / f"{n}.png")
        image.convert("L").save(folder / f"{n}_gray.jpg")
        image.convert("L").save(folder / f"{n}_gray.png")
    odd, exif = scene(rng, (90, 120)), Image.Exif()
    exif[0x0112] = 6
    odd.save(folder / "turned.jpg", exif=exif)
    odd.convert("CMYK").save(folder / "cmyk.jpg")
    odd.save(folder / "rgb.jpg", keep_rgb=True)
    odd.convert("P").save(folder / "palette.png")
    transparent = odd.convert("RGBA")
    transparent.putalpha(odd.convert("L"))
    transparent.save(folder / "alpha.png")
    Image.fromarray(np.asarray(odd.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    odd.save(folder / "a.webp")
    odd.save(folder / "a.tif")
    odd.save(folder / "a.bmp")
    return sorted(folder.iterdir())


def levels(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """Return the mean and the largest difference of two images in [-1, 1], in 8-bit levels."""
    difference = (one - other).abs() * 127.5
    return difference.mean().item(), difference.max().item()
