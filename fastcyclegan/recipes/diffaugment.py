"""Augment the images that the discriminators are shown, with a few launches for all of them.

The results equal those of ``reference.augment_image`` called once per image (DiffAugment, Zhao et al.,
"Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020). All random numbers come from the
caller, and everything that depends on them is computed on the device, so a CUDA graph can capture it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcyclegan.recipes.recipe import Compile, uncompiled


def _integers(u: Tensor, count: int) -> Tensor:
    """Return one of the integers 0 to ``count`` - 1 for each element of ``u`` [K], as [K, 1].

    An element can be 1, to which fp32 rounds numbers just below it.
    """
    return (u * count).long().clamp(max=count - 1).unsqueeze(1)


def _recolored(x: Tensor, u: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of ``x`` [K, C, H, W] by the numbers ``u`` [3, K].

    The three steps of the reference are multiplied out: contrast around the mean of an image, which
    saturation does not change, and which brightness moves along.
    """
    brightness, saturation, contrast = u.to(x.dtype).view(3, -1, 1, 1, 1).unbind()
    contrast = contrast + 0.5
    slope = 2 * saturation * contrast
    gray = x.mean(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    return x * slope + ((contrast - slope) * gray + ((1 - contrast) * mean + (brightness - 0.5)))


def _moved(u: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return which row (or column) each of ``length`` rows is copied from, and which remain empty.

    Both are [K, length], for shifts by up to 1/8 of the length that ``u`` [K] selects.
    """
    reach = int(length * 0.125 + 0.5)
    source = torch.arange(length, device=u.device) + (_integers(u, 2 * reach + 1) - reach)
    inside = source.clamp(0, length - 1)
    return inside, inside != source


def _translated(x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Move each image of ``x`` [K, C, H, W] by the numbers ``u`` [2, K].

    The second result [K, H, W] is true where a pixel was moved in from outside and must be set to zero.
    """
    height, width = x.shape[2:]
    (rows, no_row), (columns, no_column) = _moved(u[0], height), _moved(u[1], width)
    pixels = rows.unsqueeze(2) * width + columns.unsqueeze(1)
    # Gather rows of C values, which are neighbours in channels_last memory.
    index = pixels.view(-1, height * width, 1).expand(-1, -1, x.shape[1])
    moved = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, index)
    return moved.unflatten(1, (height, width)).permute(0, 3, 1, 2), no_row.unsqueeze(2) | no_column.unsqueeze(
        1
    )


def _span(u: Tensor, length: int) -> Tensor:
    """Return which of ``length`` rows (or columns) are cut out, as [K, length]. ``u`` [K] selects them."""
    size = int(length * 0.5 + 0.5)
    row = torch.arange(length, device=u.device) - (_integers(u, length + 1 - size % 2) - size // 2)
    return row == row.clamp(0, size - 1)


def augment(x: Tensor, u: Tensor, augmentations: Sequence[str]) -> Tensor:
    """Return the images ``x`` [K, C, H, W], each augmented by its column of the numbers ``u`` [7, K].

    ``augmentations`` are some of ``reference.AUGMENTATIONS``. 16-bit images are converted to fp32.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    empty = None
    if "color" in augmentations:
        x = _recolored(x, u[:3])
    if "translation" in augmentations:
        x, empty = _translated(x, u[3:5])
    if "cutout" in augmentations:
        cut = _span(u[5], x.shape[2]).unsqueeze(2) & _span(u[6], x.shape[3]).unsqueeze(1)
        empty = cut if empty is None else empty | cut
    if empty is not None:
        x = torch.where(empty.unsqueeze(1), 0.0, x)
    return x


class DiffAugment:
    """Applies ``augmentations`` to several batches of images. ``compile_loss`` compiles the arithmetic.

    Without augmentations, images are returned unchanged and need no random numbers.
    """

    def __init__(self, augmentations: Sequence[str], compile_loss: Compile = uncompiled) -> None:
        self.augmentations = tuple(augmentations)
        self._augment = compile_loss(augment)

    def __call__(self, batches: Sequence[Tensor], numbers: Tensor | None) -> list[Tensor]:
        """Return k batches [N, C, H, W], augmented by the random numbers ``numbers`` [7, k, N] in [0, 1]."""
        if not self.augmentations:
            return list(batches)
        assert numbers is not None, "augmentations need random numbers"
        if any(x.shape != batches[0].shape for x in batches[1:]):
            alone = zip(batches, numbers.unbind(1), strict=True)
            return [self._augment(x, u, self.augmentations) for x, u in alone]
        x = torch.cat(list(batches))  # stack would not keep channels_last
        return list(self._augment(x, numbers.flatten(1), self.augmentations).chunk(len(batches)))
