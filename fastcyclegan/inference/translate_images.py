"""Translate PIL images, arrays, tensors and image files with a generator.

Each result has the type of its input, except that the result for a path is a PIL image.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fastcyclegan.data.image_file import open_image, upright
from fastcyclegan.data.pixels import to_image
from fastcyclegan.errors import UserError
from fastcyclegan.inference.batches import Given, Item, translated
from fastcyclegan.inference.tiling import tiles_of
from fastcyclegan.inference.translator import Translator, engine_of, no_numbers, require_file_channels
from fastcyclegan.settings.tiles import TileSettings

ImageLike = Image.Image | NDArray[Any] | Tensor | str | Path


class _Translation:
    """What translates the images of a call."""

    def __init__(self, translator: Translator, tiles: TileSettings, batch_size: int, any_size: bool) -> None:
        self.translator, self.batch_size, self.any_size = translator, batch_size, any_size
        self.tiles = tiles_of(translator, tiles, Path(tempfile.gettempdir()))

    def __call__(self, batch: list[Item]) -> list[Any]:
        """Return the translations of images of one size. Raises UserError for one that has none."""
        results = translated(self.translator, self.tiles, batch)
        for (image, _), result in zip(batch, results, strict=True):
            if result is None:
                raise UserError(no_numbers(image.shown))
        return results


def translate_images(
    net: nn.Module,
    images: ImageLike | Sequence[ImageLike],
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 8,
    any_size: bool = False,
    seed: int = 0,
    tiles: TileSettings = TileSettings(),
) -> Any:
    """Translate an image, or a list of images, with the generator ``net``, on ``device``.

    Each result has the type of its input. An image can be a PIL image or a path (any mode, rotated upright; a
    path returns a PIL image), a uint8 array [H, W, C] or [H, W], or a float tensor [C, H, W] or [N, C, H, W]
    in [-1, 1]. ``any_size`` is as in ``open_image``.

    If ``net`` is a network that ``network_to_call`` returned, ``seed`` and the names of the images determine
    the masks of dropout. The name of a path is that of its file, and that of another image its position in
    the list, from which the images of a tensor [N, C, H, W] are counted on.

    ``tiles`` tells whether and how images are translated by tiles. With the storage "disk", the file between
    passes is in the folder for temporary files.

    Raises BadImageError for a file that cannot be read, UserError for an image that does not fit into memory,
    or that the network gives no numbers for, and ValueError or TypeError for anything that is not such an
    image.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    translator = Translator(net, device, precision, engine=engine_of(net, precision), seed=seed)
    translation = _Translation(translator, tiles, batch_size, any_size)
    if not isinstance(images, (list, tuple)):
        return _translate([images], translation)[0]
    return _translate(images, translation)


def _translate(images: Sequence[Any], translation: _Translation) -> list[Any]:
    """Translate ``images``. Images of equal size are translated in batches, except for tensors."""
    translator = translation.translator
    results: list[Any] = [None] * len(images)
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}

    def flush(batch: list[tuple[int, Tensor]]) -> None:
        items: list[Item] = []
        for place, pixels in batch:
            shown = _name_of(images[place], place, len(images))
            items.append((Given(_mask_name(images[place], place), shown), pixels))
        for (place, _), result in zip(batch, translation(items), strict=True):
            if not isinstance(images[place], np.ndarray):
                require_file_channels(translator.net, result.shape[2])
            results[place] = _to_type_of(result, images[place])

    for place, image in enumerate(images):
        if isinstance(image, Tensor):
            results[place] = _tensor(image, translation, place)
            continue
        pixels = torch.from_numpy(_pixels(image, translator, translation.any_size))
        shape = tuple(pixels.shape)
        batch = waiting.setdefault(shape, [])
        batch.append((place, pixels))
        if len(batch) == translation.batch_size:
            flush(waiting.pop(shape))
    for batch in waiting.values():
        flush(batch)
    return results


def _mask_name(image: Any, place: int) -> str:
    return Path(image).name if isinstance(image, (str, Path)) else str(place)


def _name_of(image: Any, place: int, count: int) -> str:
    """Return a name for ``image``, the one at ``place`` of ``count`` images."""
    if isinstance(image, (str, Path)):
        return str(image)
    return "the image" if count == 1 else f"image {place + 1} of {count}"


def _pixels(image: Any, translator: Translator, any_size: bool) -> NDArray[np.uint8]:
    """Return uint8 pixels [H, W, C] of a path, a PIL image or an array."""
    channels = translator.channels
    if isinstance(image, np.ndarray):
        return _pixels_of_array(image, channels)
    if isinstance(image, (str, Path, Image.Image)):
        require_file_channels(translator.net)
    if isinstance(image, (str, Path)):
        opened = open_image(image, channels, _warn, any_size)
    elif isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise ValueError(
                f"translate: an image must not be empty, got {image.width}x{image.height} pixels"
            )
        opened = upright(image, channels)
    else:
        raise TypeError(
            "translate: an image must be a PIL image, an array, a tensor or a path, got"
            f" {type(image).__name__}"
        )
    pixels = np.array(opened)
    if channels == 1:
        return pixels[:, :, None]
    return pixels


def _warn(text: str) -> None:
    warnings.warn(text.removeprefix("warning: "), stacklevel=2)


def _pixels_of_array(image: NDArray[Any], channels: int) -> NDArray[np.uint8]:
    """Return a copy of a uint8 array [H, W, C] or [H, W] as [H, W, C]. Raises ValueError for other arrays."""
    array = image
    if image.ndim == 2:
        array = image[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or not array.size:
        wanted = f"uint8 [H, W, {channels}]"
        if channels == 1:
            wanted += " or [H, W]"
        raise ValueError(f"translate: an array must be {wanted}, got {image.dtype} {list(image.shape)}")
    return np.array(array)


def _tensor(image: Tensor, translation: _Translation, place: int) -> Tensor:
    """Translate a tensor [C, H, W] or [N, C, H, W], the item ``place`` of a list."""
    is_single, translator = image.dim() == 3, translation.translator
    batch = image[None] if is_single else image
    if not batch.is_floating_point() or batch.dim() != 4 or batch.shape[1] != translator.channels:
        wanted = f"floats [{translator.channels}, H, W] or [N, {translator.channels}, H, W] in [-1, 1]"
        raise ValueError(f"translate: a tensor must be {wanted}, got {image.dtype} {list(image.shape)}")
    if batch.is_meta or batch.layout != torch.strided:
        raise ValueError(f"translate: a tensor must have plain data, got {batch.layout} on {batch.device}")
    if not batch.numel():
        raise ValueError(f"translate: a tensor must not be empty, got shape {list(image.shape)}")
    if not batch.abs().amax() <= 1.001:  # also true for NaN
        low, high = batch.amin().item(), batch.amax().item()
        raise ValueError(f"translate: a tensor must be in [-1, 1], got values from {low:g} to {high:g}")
    items: list[Item] = []
    for number, pixels in enumerate(batch.detach().permute(0, 2, 3, 1)):
        # The images of a tensor count from its place on.
        shown = f"image {number + 1} of {batch.shape[0]} of the tensor"
        items.append((Given(str(place + number), shown), pixels))
    result = torch.stack(translation(items)).permute(0, 3, 1, 2)
    if is_single:
        return result[0]
    return result


def _to_type_of(pixels: NDArray[np.uint8], image: Any) -> Any:
    if not isinstance(image, np.ndarray):
        return to_image(pixels)
    if image.ndim == 2:
        return pixels[:, :, 0]
    return pixels
