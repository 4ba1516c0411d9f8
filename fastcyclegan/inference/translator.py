"""Translate PIL images, arrays, tensors and image files with a generator.

Each result has the type of its input, except that the result for a path is a PIL image.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fastcyclegan.data.fit import FILE_CHANNELS
from fastcyclegan.data.image_file import open_image, upright
from fastcyclegan.data.pixels import to_image, to_pixels, to_unit_range
from fastcyclegan.errors import UserError
from fastcyclegan.inference.network_runner import InferenceEngine
from fastcyclegan.inference.network_state import NetworkState
from fastcyclegan.nn.as_trained import as_trained, has_masks, mask_keys
from fastcyclegan.nn.finite import are_finite

ImageLike = Image.Image | NDArray[Any] | Tensor | str | Path


def no_numbers(image: object) -> str:
    """Return the message about an image whose translation is NaN or infinite. ``image`` names it."""
    return f"the network gives no numbers for {image}: its weights are too large or damaged"


def padded_side(side: int, multiple: int) -> int:
    """Return the next multiple of ``multiple`` that is at least ``side`` and at least 8 pixels."""
    return max(-(-side // multiple) * multiple, 8)


def pad_to_multiple(pixels: Tensor, multiple: int, axes: tuple[int, int] = (0, 1)) -> Tensor:
    """Pad ``pixels`` by reflection at the end of each axis in ``axes``, to its ``padded_side``."""
    for axis in axes:
        side = pixels.shape[axis]
        room = padded_side(side, multiple) - side
        if room:
            index = torch.from_numpy(np.pad(np.arange(side), (0, room), mode="reflect"))
            pixels = pixels.index_select(axis, index.to(pixels.device))
    return pixels


def input_channels(net: nn.Module) -> int:
    """Return how many channels the first convolution of ``net`` takes. Raises UserError if it has none."""
    weight = next((p for p in net.parameters() if p.dim() == 4), None)
    if weight is None:
        raise UserError(f"{type(net).__name__} cannot translate images: it has no convolutions")
    return weight.shape[1]


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def require_file_channels(net: nn.Module, returned: int | None = None) -> None:
    """Raise UserError if ``net`` does not translate between images as files contain them.

    ``returned`` is the number of channels of its images; by default, the one that the network records.
    """
    taken = input_channels(net)
    if returned is None:
        returned = getattr(net, "arguments", {}).get("output_nc", taken)
    if not {taken, returned} <= set(FILE_CHANNELS):
        raise UserError(
            f"the network translates images of {_channels(taken)} to {returned}, but images from files have 3"
            f" (colour) or 1 (gray): pass float tensors [{taken}, H, W] to translate in Python"
        )


class Translator:
    """Applies a generator to images of any size. The images can be on the host or on the generator's device.

    ``log`` receives a line when kernels are compiled ahead of their first launch, and for each choice of the
    engine that differs from the request. ``compiled`` is as in ``InferenceEngine``. Without an ``engine``,
    the translator makes one. If ``net`` is one that ``as_trained`` made, the masks of its dropout depend on
    ``seed`` and on the names of the images.
    """

    def __init__(
        self,
        net: nn.Module,
        device: torch.device,
        precision: str,
        log: Callable[[str], object] = lambda text: None,
        *,
        compiled: bool = False,
        engine: InferenceEngine | None = None,
        seed: int = 0,
    ) -> None:
        self.net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.log, self.compiled = device, log, compiled
        self.engine = InferenceEngine(net, precision, compiled, log) if engine is None else engine
        self.channels, self.multiple = input_channels(net), int(getattr(net, "size_multiple", 4))
        self.seed, self.has_masks = seed, has_masks(net)

    def in_precision(self, precision: str) -> Translator:
        """Return this translator if it has that precision, otherwise another one of the same network."""
        if precision == self.engine.precision:
            return self
        options: dict[str, Any] = {"compiled": self.compiled, "seed": self.seed}
        return Translator(self.net, self.device, precision, self.log, **options)

    def _keys(self, names: Sequence[str]) -> Tensor | None:
        return mask_keys(self.seed, names) if self.has_masks else None

    @torch.inference_mode()
    def __call__(
        self, images: list[Tensor], names: Sequence[str] | None = None
    ) -> list[NDArray[np.uint8] | None]:
        """Translate uint8 images [H, W, C] whose sizes are equal after padding.

        ``names`` are those of the images, by default their positions: "0", "1" ... Each result has the size
        of its image. It is None if the network gives no numbers for the image.
        """
        padded = torch.stack([pad_to_multiple(image, self.multiple) for image in images])
        if names is None:
            names = numbered(len(images))
        result = self.engine(to_unit_range(padded, self.device), self._keys(names))
        parts = []
        for translation, image in zip(result, images, strict=True):
            parts.append(translation[:, : image.shape[0], : image.shape[1]])
        finite = are_finite(parts)
        if not all(finite):
            result = result.nan_to_num()
        translations: list[NDArray[np.uint8] | None] = []
        for pixels, image, is_finite in zip(to_pixels(result), images, finite, strict=True):
            height, width = image.shape[:2]
            translations.append(pixels[:height, :width] if is_finite else None)
        return translations

    @torch.no_grad()
    def tensors(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Translate float images [N, C, H, W] in [-1, 1]. The result has the same dtype and device.

        Raises UserError if the network gives no numbers for one of them.
        """
        padded = pad_to_multiple(images.to(self.device, torch.float32), self.multiple, (2, 3))
        result = self.engine(padded.contiguous(memory_format=torch.channels_last), self._keys(names))
        result = result[:, :, : images.shape[2], : images.shape[3]]
        finite = are_finite(list(result))
        if not all(finite):
            raise UserError(no_numbers(f"image {finite.index(False) + 1} of {len(finite)} of the tensor"))
        return result.to(images)


def numbered(count: int) -> list[str]:
    """Return the names of ``count`` images that have none."""
    return [str(number) for number in range(count)]


_engines: weakref.WeakKeyDictionary[nn.Module, InferenceEngine] = weakref.WeakKeyDictionary()
_as_trained: weakref.WeakKeyDictionary[nn.Module, tuple[NetworkState, nn.Module]] = (
    weakref.WeakKeyDictionary()
)
_choosing = threading.Lock()


def network_to_call(net: nn.Module, device: torch.device, evaluate: bool = False) -> nn.Module:
    """Return the network that translates for ``net``, which is moved to ``device`` in channels_last.

    That is ``net``, unless it translates as in training and ``evaluate`` is not set; see ``as_trained``.
    """
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if evaluate or not getattr(net, "translates_as_trained", False):
        return net
    with _choosing:
        known = _as_trained.get(net)
        if known is None or not known[0].is_current(net):
            known = _as_trained[net] = NetworkState(net), as_trained(net)
        return known[1]


def engine_of(net: nn.Module, precision: str) -> InferenceEngine:
    """Return the engine that ``translate_images`` uses for ``net``, which is kept as long as the network.

    Another precision replaces it.
    """
    with _choosing:
        engine = _engines.get(net)
        if engine is None or engine.precision != precision:
            engine = _engines[net] = InferenceEngine(net, precision)
        return engine


def release_engine(net: nn.Module) -> None:
    """Free the memory that ``translate_images`` keeps for ``net``."""
    with _choosing:
        _engines.pop(net, None)
        _as_trained.pop(net, None)  # and with the network its engine


def translate_images(
    net: nn.Module,
    images: ImageLike | Sequence[ImageLike],
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 8,
    any_size: bool = False,
    seed: int = 0,
) -> Any:
    """Translate an image, or a list of images, with the generator ``net``, on ``device``.

    Each result has the type of its input. An image can be a PIL image or a path (any mode, rotated upright; a
    path returns a PIL image), a uint8 array [H, W, C] or [H, W], or a float tensor [C, H, W] or [N, C, H, W]
    in [-1, 1]. ``any_size`` is as in ``open_image``.

    If ``net`` is a network that ``network_to_call`` returned, ``seed`` and the names of the images determine
    the masks of dropout. The name of a path is that of its file, and that of another image its position in
    the list, from which the images of a tensor [N, C, H, W] are counted on.

    Raises BadImageError for a file that cannot be read, UserError for an image that the network gives no
    numbers for, and ValueError or TypeError for anything that is not such an image.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    translator = Translator(net, device, precision, engine=engine_of(net, precision), seed=seed)
    if not isinstance(images, (list, tuple)):
        return _translate([images], translator, batch_size, any_size)[0]
    return _translate(images, translator, batch_size, any_size)


def _translate(images: Sequence[Any], translator: Translator, batch_size: int, any_size: bool) -> list[Any]:
    """Translate ``images``. Images of equal size are translated in batches, except for tensors."""
    results: list[Any] = [None] * len(images)
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}

    def flush(batch: list[tuple[int, Tensor]]) -> None:
        names = [_mask_name(images[place], place) for place, _ in batch]
        translations = translator([pixels for _, pixels in batch], names)
        for (place, _), translation in zip(batch, translations, strict=True):
            if translation is None:
                raise UserError(no_numbers(_name_of(images[place], place, len(images))))
            if not isinstance(images[place], np.ndarray):
                require_file_channels(translator.net, translation.shape[2])
            results[place] = _to_type_of(translation, images[place])

    for place, image in enumerate(images):
        if isinstance(image, Tensor):
            results[place] = _tensor(image, translator, place)
            continue
        pixels = torch.from_numpy(_pixels(image, translator, any_size))
        shape = tuple(pixels.shape)
        batch = waiting.setdefault(shape, [])
        batch.append((place, pixels))
        if len(batch) == batch_size:
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


def _tensor(image: Tensor, translator: Translator, place: int) -> Tensor:
    """Translate a tensor [C, H, W] or [N, C, H, W], the item ``place`` of a list."""
    is_single = image.dim() == 3
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
    # The images of a tensor count from its place on.
    names = [str(place + number) for number in range(batch.shape[0])]
    result = translator.tensors(batch, names)
    if is_single:
        return result[0]
    return result


def _to_type_of(pixels: NDArray[np.uint8], image: Any) -> Any:
    if not isinstance(image, np.ndarray):
        return to_image(pixels)
    if image.ndim == 2:
        return pixels[:, :, 0]
    return pixels
