"""Images that can tell right from wrong, and those that cannot.

An image of one colour decides nothing. Instance norm takes a constant away and divides the rounding noise
that is left by sqrt(1e-5): up to 300 times larger after each norm, after a few it is all there is, in float64
too. So flat images are refused, by name. Of faint ones the liveliest crop is judged, its contrast stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.data.batch import Batch


class Undecided(Exception):  # noqa: N818 - not a fault of what is judged
    """What was given cannot tell right from wrong; the message names it."""


def is_flat(image: Tensor) -> bool:
    """Whether ``image`` [C, H, W] is of one colour all over."""
    return bool((image.amax((1, 2)) == image.amin((1, 2))).all())


def flat_images(batches: Sequence[Batch]) -> list[str]:
    """Return the paths of the images of ``batches`` that are flat."""
    flat = []
    for batch in batches:
        for paths, images in ((batch.paths_A, batch.A), (batch.paths_B, batch.B)):
            for path, image in zip(paths, images, strict=True):
                if is_flat(image):
                    flat.append(path)
    return flat


def deviation(image: Tensor) -> float:
    """Return by how much the pixels of ``image`` [C, H, W] deviate from its mean colour, as a root mean
    square.
    """
    return image.double().var((1, 2), correction=0).mean().sqrt().item()


def listed(names: Sequence[str], shown: int = 4) -> str:
    """Return the different ones of ``names`` in a line, the first few and how many more."""
    different = list(dict.fromkeys(names))
    line = ", ".join(different[:shown])
    if len(different) > shown:
        line += f" and {len(different) - shown} more"
    return line


def liveliest_crop(image: Tensor, size: int) -> Tensor:
    """Return the crop of ``image`` [C, H, W] that varies most, at most ``size`` squared, in float64 with its
    contrast stretched to [-1, 1].

    Every place is looked at, so all but a flat image has a crop that varies, while a shrunken image may be
    flat where its pixels are not. Channels are centred, and stretched by one factor. Then n pixels of the one
    that varies most deviate by sqrt(2 / n) or more, so that at 32x32 no more than 5 bits drown in the mean
    that the first instance norm takes away, however faint the image is.
    """
    pixels = image.detach().double().cpu()
    height, width = min(size, pixels.shape[1]), min(size, pixels.shape[2])
    around = pixels - pixels.mean((1, 2), keepdim=True)
    mean = F.avg_pool2d(around, (height, width), 1)
    power = F.avg_pool2d(around.square(), (height, width), 1)
    varying = (power - mean.square()).sum(0)
    top, left = divmod(int(varying.argmax()), varying.shape[1])
    crop = pixels[:, top : top + height, left : left + width]
    least, most = crop.amin((1, 2), keepdim=True), crop.amax((1, 2), keepdim=True)
    return (2 * crop - least - most) / (most - least).max()


def liveliest_crops(batch: Batch, size: int) -> Batch:
    return replace(batch, A=_crops_of(batch.A, size), B=_crops_of(batch.B, size))


def _crops_of(images: Tensor, size: int) -> Tensor:
    return torch.stack([liveliest_crop(image, size) for image in images]).to(images.device)
