"""Apply a generator to uint8 pixels and to float tensors of any size, with an engine that is kept."""

from __future__ import annotations

import threading
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
from fastcyclegan.data.pixels import to_pixels, to_unit_range
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


def pad_to_multiple(pixels: Tensor, multiple: int) -> Tensor:
    """Pad ``pixels`` [H, W, C] by reflection at the end of both sides, to their ``padded_side``."""
    for axis in (0, 1):
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

    def keys(self, names: Sequence[str]) -> Tensor | None:
        """Return the keys of the dropout masks of images with these ``names``, or None without dropout."""
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
        result = self.engine(to_unit_range(padded, self.device), self.keys(names))
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
    def tensors(self, images: list[Tensor], names: Sequence[str]) -> list[Tensor | None]:
        """Translate float images [H, W, C] in [-1, 1]. Each result has the dtype and device of its image.

        Otherwise, this is like a call.
        """
        padded = torch.stack([pad_to_multiple(image, self.multiple) for image in images])
        x = padded.to(self.device, torch.float32).permute(0, 3, 1, 2)
        result = self.engine(x, self.keys(names))
        parts = []
        for translation, image in zip(result, images, strict=True):
            parts.append(translation[:, : image.shape[0], : image.shape[1]])
        translations: list[Tensor | None] = []
        for part, image, is_finite in zip(parts, images, are_finite(parts), strict=True):
            translations.append(part.to(image).permute(1, 2, 0) if is_finite else None)
        return translations


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
