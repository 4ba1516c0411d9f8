"""Find images on which parity cannot be checked, and prepare faint images for the check.

Parity cannot be checked on an image of a single colour. Instance norm subtracts a constant and divides the
rounding noise that remains by sqrt(1e-5). Each norm makes this noise up to 300 times larger, and after a few
norms nothing else is left, even in float64. Flat images are therefore rejected, with their paths in the
message. For faint images, the crop with the highest contrast is checked, and its contrast is stretched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.data.batch import Batch


class Undecided(Exception):  # noqa: N818 - not an error in the checked code
    """Raised if the images cannot show whether parity holds; the message lists them."""


def is_flat(image: Tensor) -> bool:
    """Return whether all pixels of ``image`` [C, H, W] have the same colour."""
    return bool((image.amax((1, 2)) == image.amin((1, 2))).all())


def flat_images(batches: Sequence[Batch]) -> list[str]:
    """Return the paths of the flat images in ``batches``."""
    flat = []
    for batch in batches:
        for side, images in batch.images.items():
            for path, image in zip(batch.paths[side], images, strict=True):
                if is_flat(image):
                    flat.append(path)
    return flat


def deviation(image: Tensor) -> float:
    """Return the root mean square deviation of the pixels of ``image`` [C, H, W] from its mean colour."""
    return image.double().var((1, 2), correction=0).mean().sqrt().item()


def join_names(names: Sequence[str], shown: int = 4) -> str:
    """Join the first ``shown`` distinct ``names`` with commas, and add the number of further ones."""
    different = list(dict.fromkeys(names))
    line = ", ".join(different[:shown])
    if len(different) > shown:
        line += f" and {len(different) - shown} more"
    return line


def most_varied_crop(image: Tensor, size: int) -> Tensor:
    """Return the highest-contrast crop of ``image`` [C, H, W], stretched to [-1, 1] in float64.

    The crop is no larger than ``size`` x ``size``. Every position is considered, so an image that is not flat
    always has a crop that is not flat. Shrinking the image would not guarantee that. Each channel is centred,
    and all are stretched by a common factor. In the channel with the widest range, the n pixels then have a
    root mean square of at least sqrt(2 / n). At 32x32, therefore, the subtraction of the mean in the first
    instance norm costs at most 5 bits, however faint the image is.
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


def most_varied_crops(batch: Batch, size: int) -> Batch:
    return batch.with_images(lambda images: _crops_of(images, size))


def _crops_of(images: Tensor, size: int) -> Tensor:
    return torch.stack([most_varied_crop(image, size) for image in images]).to(images.device)
