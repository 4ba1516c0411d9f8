"""Translate images of any size by tiles: exactly, or each tile by itself with feathered seams."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.data.host_memory import available_memory, free_memory
from fastcyclegan.data.pixels import NoNumbersError, to_pixels, to_unit_range
from fastcyclegan.errors import UserError, cannot_write, is_out_of_memory
from fastcyclegan.inference.memory import FIXED, budget_of, forms_to_make, size_of
from fastcyclegan.inference.translator import Translator, padded_side
from fastcyclegan.settings.tiles import TileSettings, TileStorage
from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.execute import Allocate, Ends, Execution, Progress
from fastcyclegan.tiles.graph import ForeignLayerError
from fastcyclegan.tiles.independent import blended, check, rounded
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.plan import plans
from fastcyclegan.tiles.spans import Window
from fastcyclegan.tiles.storage import FileRows, TensorRows

# The sides of tiles that "auto" tries, in this order. A GPU needs large ones to be busy.
SIDES, SIDES_ON_GPU = (512, 256, 128), (1024, 512, 256, 128)
# Exact tiles lie on the grid of the network, but on none coarser than this.
GRID = 256
# How much more than the estimate a pass can take, for what convolutions keep for themselves.
FACTOR = 1.25


class TooLargeError(UserError):
    """An image does not fit into memory or onto the disk, even by tiles.

    The message does not name it. ``reason`` is the part of it that does not tell what to do. With ``storage``
    "memory", it offers the disk.
    """

    def __init__(self, reason: str, storage: TileStorage) -> None:
        other = "--tile_storage disk, " if storage == "memory" else ""
        super().__init__(f"{reason}: use {other}a smaller --tile or --resize N")
        self.reason = reason


Report = Callable[[str, float, str], object]
"""Is called with the name of an image, the share of it that is done, and a text about that."""


def _ignore(*_: object) -> None:
    pass


class TiledTranslator:
    """Translates single images with the network of ``translator`` by tiles, as ``settings`` say.

    With the storage "disk", the maps between passes are kept in a file in ``folder``, which is created.
    ``log`` receives lines about sizes and choices, and ``report`` the progress, which begins with 0.

    Raises UserError for a tile or an overlap that the network cannot have, and for a network that cannot be
    translated by the given tiles.
    """

    def __init__(
        self,
        translator: Translator,
        settings: TileSettings,
        folder: Path,
        log: Callable[[str], object] = _ignore,
        report: Report = _ignore,
    ) -> None:
        self.translator, self.settings, self.folder = translator, settings, folder
        self.log, self.report = log, report
        self.is_exact = settings.tile_mode == "exact"
        self.rescues = settings.tile == "auto"
        """Whether tiles are for the images that do not fit into memory as a whole, and for no others."""
        multiple = translator.multiple
        self._grid = min(multiple, GRID) if self.is_exact else multiple
        self.sides = self._sides()
        """The sides of a tile to try, in this order."""
        if isinstance(settings.tile, int):
            if self.sides != [settings.tile]:
                log(
                    f"--tile {settings.tile}: {self.sides[0]} is used, because the network needs a multiple"
                    f" of {self._grid}"
                )
            if self.is_exact:
                self._require_possible()
        self._is_compiled = translator.compiled and self.is_exact

    def _sides(self) -> list[int]:
        tile = self.settings.tile
        if isinstance(tile, int):
            wanted: tuple[int, ...] = (tile,)
        else:
            wanted = SIDES_ON_GPU if self.translator.device.type == "cuda" else SIDES
        sides = list(dict.fromkeys(rounded(side, self._grid) for side in wanted))
        if self.is_exact:
            return sides
        problem: UserError | None = None
        possible = []
        for side in sides:
            try:
                overlap = self._overlap(side)
                check(side if self.rescues else tile, overlap, self._grid, padded_side(1, self._grid))
                possible.append(side)
            except UserError as error:
                problem = error if problem is None else problem
        if problem is not None and not possible:
            raise problem
        return possible

    def _overlap(self, side: int) -> int:
        """Return the overlap of independent tiles: as set, but the default only as far as they allow it."""
        overlap = self.settings.overlap
        if overlap == TileSettings.overlap:
            return min(overlap, side // 2 // self._grid * self._grid)
        return overlap

    def _require_possible(self) -> None:
        """Raise UserError if the network cannot be translated exactly by tiles of this side."""
        side = rounded(3 * self.sides[0], self.translator.multiple)
        with self.translator.engine.parts(self.translator.device) as net:
            self._plans(net, (side, side), self.sides[0])

    def _plans(self, net: Any, size: tuple[int, int], side: int) -> list[Plan]:
        try:
            return plans(net, self.translator.channels, size, side)
        except ForeignLayerError as error:
            raise ForeignLayerError(f"{error}; --tile_mode independent needs no such knowledge") from None

    def serves(self, height: int, width: int) -> bool:
        """Return whether an image of a padded size is translated by tiles even if it fits into memory."""
        return not self.rescues and max(height, width) > self.sides[0]

    def __call__(self, pixels: Tensor, name: str, shown: str) -> Any:
        """Translate an image [H, W, C]. Return None if the network gives no numbers for it.

        A uint8 image gives an array, and a float image in [-1, 1] a tensor, of the size of the image.
        ``name`` determines the masks of dropout, and ``shown`` is the name of the image in lines. Raises
        TooLargeError if memory or disk are too small, and UserError if the network cannot be tiled exactly or
        the disk fails.
        """
        if self._is_compiled:
            self._is_compiled = False
            self.log("--compile: exact tiles are not compiled")
        problem: TooLargeError | None = None
        for side in self.sides:
            if problem is not None:
                self.log(f"{shown}: {problem.reason}, so smaller tiles of {side}x{side} are tried")
            attempt = self._attempt(pixels, name, shown, side)
            if not isinstance(attempt, TooLargeError):
                return attempt
            problem = attempt
        assert problem is not None  # there is at least one side
        raise problem

    def _attempt(self, pixels: Tensor, name: str, shown: str, side: int) -> Any:
        """Return the translation by tiles of ``side``, or the error if they need too much memory.

        The traceback of the error, which would keep tensors in memory, is gone on return.
        """
        image = _Image(pixels, self.translator)
        translate = self._exactly if self.is_exact else self._independently
        try:
            translate(image, self.translator.keys([name]), shown, side)
        except NoNumbersError:
            return None
        except TooLargeError as error:
            problem = error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"the memory of {self.translator.device} ran out"
            problem = TooLargeError(reason, self.settings.tile_storage)
        else:
            return image.result
        del image
        release_cached(self.translator.device)
        return problem.with_traceback(None)

    def _exactly(self, image: _Image, keys: Tensor | None, shown: str, side: int) -> None:
        translator = self.translator

        def tell(progress: Progress) -> None:
            text = f"pass {progress.number} of {progress.passes}, tile {progress.tile} of {progress.tiles}"
            self.report(shown, progress.share, text)

        with translator.engine.parts(translator.device, keys) as net:
            planned, allocate = self._fitting(net, image, shown, side)
            self.report(shown, 0.0, "")
            calls = Calls(getattr(net, "impl", "reference"))
            execution = Execution(planned, calls, translator.device, allocate)
            execution.run(Ends(image.read, image.write, tell))

    def _independently(self, image: _Image, keys: Tensor | None, shown: str, side: int) -> None:
        translator, overlap = self.translator, self._overlap(side)
        budget, size = budget_of(translator), [min(side, one) for one in image.size]
        if budget is not None and not budget.count(1, size[0], size[1]):
            reason = f"a tile of {side}x{side} is too large: {budget.describe(size[0], size[1])}"
            raise TooLargeError(reason, "disk")  # where independent tiles store nothing
        self.log(f"{shown}: independent tiles of {side}x{side}, which overlap by {overlap}")

        def translate(top: int, bottom: int, left: int, right: int) -> Tensor:
            return translator.engine(image.read(((top, bottom), (left, right))), keys)[0]

        def finished(first: int, rows: Tensor) -> None:
            image.write(((first, first + rows.shape[1]), (0, image.size[1])), rows[None])

        def tell(share: float) -> None:
            self.report(shown, share, "independent tiles")

        self.report(shown, 0.0, "")
        blended(image.size, side, overlap, self._grid, translate, finished, tell)

    # --- Memory ---------------------------------------------------------------------------------------------

    def _fitting(self, net: Any, image: _Image, shown: str, side: int) -> tuple[Plan, Allocate]:
        """Return the first plan that fits, and what allocates memory for its maps.

        Raises TooLargeError, for the plan that needs the least, if there is none.
        """
        problems: list[tuple[int, TooLargeError]] = []
        for planned in self._plans(net, image.size, side):
            try:
                return planned, self._allocator(planned, image, shown, side)
            except TooLargeError as error:
                problems.append((need_of(planned).total, error))
        raise min(problems, key=lambda one: one[0])[1]

    def _allocator(self, planned: Plan, image: _Image, shown: str, side: int) -> Allocate:
        """Return what allocates memory for the maps. Raises TooLargeError if there is not enough."""
        device, host, bits = self.translator.device, torch.device("cpu"), self.translator.engine.dtype
        need = need_of(planned)
        stored, passing = need.stored * bits.itemsize, int(need.temporary * bits.itemsize * FACTOR)
        place: torch.device | None = device
        if self.settings.tile_storage == "disk":
            place = None
        elif device.type != "cpu" and not fits_on(device, stored + passing):
            place = host
        needed = {host: image.bytes, device: passing}
        if device == host:
            passing += image.bytes + forms_to_make(self.translator)
            needed = {host: passing}
        if place is not None:
            needed[place] += stored
        needed[host] += min(needed[host], FIXED)  # what the C library keeps in pieces
        for one, count in needed.items():
            _require("memory", one, count, _free(one), self.settings.tile_storage)
        if place is None:
            self._require_disk(stored)
        where = f"in the memory of {place}" if place is not None else f"in a file in {self.folder}"
        self.log(
            f"{shown}: {len(planned.passes)} passes over tiles of {side}x{side}, with up to"
            f" {size_of(stored)} {where} between them, {size_of(passing)} to compute a tile, and"
            f" {max(planned.work, 1):.1f} times the work of the whole image"
        )
        if place is None:
            return lambda shape, dtype: FileRows(shape, dtype, self.folder)
        return lambda shape, dtype: TensorRows(shape, dtype, place)

    def _require_disk(self, needed: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        _require("disk", self.folder, needed, free, "disk")


def _free(device: torch.device) -> int | None:
    """Return the free bytes on ``device``, or None if they are not known."""
    if device.type != "cuda":
        return available_memory()
    # PyTorch keeps freed memory for later tensors.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory(device) + kept


def fits_on(device: torch.device, needed: int) -> bool:
    """Return whether so many bytes are free on ``device``, as far as that is known."""
    free = _free(device)
    return free is None or needed <= free


def _require(kind: str, place: object, needed: int, free: int | None, storage: TileStorage) -> None:
    """Raise TooLargeError if less than ``needed`` bytes are free."""
    if free is not None and needed > free:
        reason = f"{size_of(needed)} of {kind} ({place}) are needed, and {size_of(free)} are free"
        raise TooLargeError(reason, storage)


def release_cached(device: torch.device) -> None:
    """Give back memory that only garbage, or PyTorch's allocator, holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def tiles_of(
    translator: Translator,
    settings: TileSettings,
    folder: Path,
    log: Callable[[str], object] = _ignore,
    report: Report = _ignore,
) -> TiledTranslator | None:
    """Return what translates by tiles as ``settings`` say, or None if they turn tiles off."""
    return None if settings.tile is None else TiledTranslator(translator, settings, folder, log, report)


# --- Pixels -------------------------------------------------------------------------------------------------


class _Image:
    """An image [H, W, C], uint8 or floats in [-1, 1], and its translation, both window by window.

    Windows are those of the image after a translator has padded it, whose ``size`` is (H, W).
    """

    def __init__(self, pixels: Tensor, translator: Translator) -> None:
        self._pixels, self._device = pixels, translator.device
        self._places = [_places(side, translator.multiple) for side in pixels.shape[:2]]
        self.size = len(self._places[0]), len(self._places[1])
        self._result: Tensor | None = None

    @property
    def bytes(self) -> int:
        """The bytes of the translation, if it has as many channels as the image."""
        return self._pixels.nbytes

    def read(self, window: Window) -> Tensor:
        """Return the pixels [1, C, h, w] of a window as floats in [-1, 1]."""
        pixels = _taken(self._pixels, self._places, window)[None]
        if pixels.dtype == torch.uint8:
            return to_unit_range(pixels, self._device)
        return pixels.to(self._device, torch.float32).contiguous().permute(0, 3, 1, 2)

    def write(self, window: Window, y: Tensor) -> None:
        """Take over a window [1, C, h, w] of the translation. Raises NoNumbersError for NaN and infinity."""
        height, width = self._pixels.shape[:2]
        (top, bottom), (left, right) = window
        y = y[:, :, : max(height - top, 0), : max(width - left, 0)]
        if self._pixels.dtype == torch.uint8:
            values = torch.from_numpy(to_pixels(y))
        elif not y.isfinite().all():
            raise NoNumbersError("the translation must be finite, got NaN or infinity")
        else:
            values = y.permute(0, 2, 3, 1)
        if self._result is None:
            device = values.device if values.dtype == torch.uint8 else self._pixels.device
            shape = height, width, values.shape[3]
            self._result = torch.empty(shape, dtype=self._pixels.dtype, device=device)
        self._result[top:bottom, left:right].copy_(values[0])

    @property
    def result(self) -> NDArray[np.uint8] | Tensor:
        """The translation, after all windows have been written."""
        assert self._result is not None
        return self._result.numpy() if self._result.dtype == torch.uint8 else self._result


def _places(side: int, multiple: int) -> NDArray[np.int64]:
    """Return which pixel of a side stands at each position after the side was padded by reflection."""
    room = padded_side(side, multiple) - side
    return np.pad(np.arange(side), (0, room), mode="reflect")


def _taken(pixels: Tensor, places: list[NDArray[np.int64]], window: Window) -> Tensor:
    """Return a window of the padded image [H, W, C]."""
    for axis, (span, place) in enumerate(zip(window, places, strict=True)):
        if span[1] <= pixels.shape[axis]:
            pixels = pixels.narrow(axis, span[0], span[1] - span[0])
        else:
            index = torch.from_numpy(place[slice(*span)])
            pixels = pixels.index_select(axis, index.to(pixels.device))
    return pixels
