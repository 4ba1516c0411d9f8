"""Translate images in batches, as far as the memory allows, without losing the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Row
from fastcyclegan.errors import UserError, is_out_of_memory
from fastcyclegan.inference.memory import Budget, budget_of
from fastcyclegan.inference.tiling import TiledTranslator, TooLargeError, release_cached
from fastcyclegan.inference.translator import Translator, no_numbers, padded_side


class Named(Protocol):
    """An image, such as an ``Output``: the name that determines its masks of dropout, and that in lines."""

    @property
    def name(self) -> str: ...
    @property
    def shown(self) -> str: ...


@dataclass(frozen=True)
class Given:
    """An image that is not a file of a folder."""

    name: str
    shown: str


class NoRoomError(UserError):
    """An image cannot be translated, because memory is too small for it, and tiles cannot help."""


Item = tuple[Any, Tensor]
"""An image, which is ``Named``, and its pixels [H, W, C] before the translation."""
Translated = tuple[Any, Tensor, Any]
"""An image, and its pixels [H, W, C] before and after the translation.

The latter are an array for uint8 pixels, and a tensor for floats in [-1, 1].
"""

# Maximum number of pixels in a batch, so that large images are translated one by one. A 9-block generator
# needs about 0.8 KB per pixel.
BATCH_PIXELS = 2**20
# Maximum number of pixels of the images that wait for others of their size.
WAITING_PIXELS = 16 * BATCH_PIXELS


def gathered(
    rows: Iterable[tuple[Job, Row]],
    translator: Translator,
    batch_size: int,
    bad: Callable[[BadImageError], bool],
) -> Iterator[list[Item]]:
    """Yield batches of images whose sizes are equal after padding.

    Only a few images are in memory at a time, regardless of their total number and of their sizes. ``bad`` is
    called with the error of an image that cannot be read, and returns whether to read the next ones.
    """
    buckets: dict[tuple[int, int], list[Item]] = {}
    waiting = count = 0
    for job, pixels in rows:
        if isinstance(pixels, BadImageError):
            if bad(pixels):
                continue
            break
        height, width = padded_size(pixels, translator)
        bucket = buckets.setdefault((height, width), [])
        bucket.append((job.tag, pixels))
        waiting, count = waiting + height * width, count + 1
        size: tuple[int, int] | None = None
        if len(bucket) >= min(batch_size, max(1, BATCH_PIXELS // (height * width))):
            size = height, width
        elif count >= 4 * batch_size or waiting >= WAITING_PIXELS:
            size = max(buckets, key=lambda key: (len(buckets[key]), key[0] * key[1]))
        if size is not None:
            batch = buckets.pop(size)
            waiting, count = waiting - len(batch) * size[0] * size[1], count - len(batch)
            yield batch
    for size in list(buckets):
        yield buckets.pop(size)


def padded_size(pixels: Tensor, translator: Translator) -> tuple[int, int]:
    """Return the height and the width of an image [H, W, C] after the translator has padded it."""
    height, width = (padded_side(side, translator.multiple) for side in pixels.shape[:2])
    return height, width


class FittingTranslator:
    """Translates batches, in parts or one image at a time if memory is short, and by ``tiles`` if given.

    ``failed`` is called with the description of an image that does not fit even so, and ``no_numbers`` with
    that of an image that the network gives no numbers for. ``release`` is called before a second try, to free
    memory. Without a ``budget``, a batch is tried regardless of its size.
    """

    def __init__(
        self,
        translator: Translator,
        budget: Budget | None,
        failed: Callable[[str], None],
        release: Callable[[], None],
        no_numbers: Callable[[str], None],
        tiles: TiledTranslator | None = None,
    ) -> None:
        self.translator, self.budget, self.tiles = translator, budget, tiles
        self.failed, self.release, self.no_numbers = failed, release, no_numbers

    def __call__(self, batch: list[Item]) -> Iterator[Translated]:
        """Yield the images of ``batch``, whose sizes are equal after padding, with their translations."""
        if self.tiles is not None and self.tiles.serves(*padded_size(batch[0][1], self.translator)):
            for item in batch:
                yield from self._by_tiles(item, self.tiles)
            return
        while batch:
            count = self._count(batch)
            if count < len(batch):
                self._free()
                count = self._count(batch)
            if count == 0:
                for item in batch:
                    yield from self._too_large(item)
                return
            yield from self._part(batch[:count])
            batch = batch[count:]

    def _count(self, batch: list[Item]) -> int:
        """Return how many images of ``batch`` fit into the memory at once, as far as that is known."""
        if self.budget is None:
            return len(batch)
        return self.budget.count(len(batch), *padded_size(batch[0][1], self.translator))

    def _part(self, part: list[Item]) -> Iterator[Translated]:
        translations = self._attempt(part)
        if translations is not None:
            yield from self._numbers(part, translations)
            return
        self._free()
        for item in part:
            alone = self._attempt([item])
            if alone is None:
                self._free()
                yield from self._too_large(item)
            else:
                yield from self._numbers([item], alone)

    def _numbers(self, part: list[Item], translations: list[Any]) -> Iterator[Translated]:
        """Yield the images of ``part`` with their translations, and name those that have none."""
        for (image, before), after in zip(part, translations, strict=True):
            if after is None:
                self.no_numbers(no_numbers(image.shown))
            else:
                yield image, before, after

    def _attempt(self, part: list[Item]) -> list[Any] | None:
        """Return the translations, or None if memory runs out.

        The error is gone on return: its traceback would keep the tensors of the failed attempt in memory.
        """
        pixels, names = [pixels for _, pixels in part], [image.name for image, _ in part]
        try:
            if pixels[0].is_floating_point():
                return list(self.translator.tensors(pixels, names))
            return list(self.translator(pixels, names))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _too_large(self, item: Item) -> Iterator[Translated]:
        """Translate an image that does not fit into memory by tiles, or name it."""
        image, pixels = item
        height, width = pixels.shape[:2]
        text = f"{image.shown}: {width}x{height} does not fit into the memory of {self.translator.device}"
        if self.budget is not None:
            text += f" ({self.budget.describe(*padded_size(pixels, self.translator))})"
        if self.tiles is not None and self.tiles.rescues:
            self.tiles.log(f"{text}, so it is translated by tiles")
            yield from self._by_tiles(item, self.tiles)
        else:
            other = "--tile auto" if self.tiles is None else "a smaller --tile"
            self.failed(f"{text}: use {other}, --resize N with a smaller N, or a device with more memory")

    def _by_tiles(self, item: Item, tiles: TiledTranslator) -> Iterator[Translated]:
        image, pixels = item
        try:
            try:
                after = tiles(pixels, image.name, image.shown)
            except TooLargeError:
                if tiles.rescues:  # the memory has been freed already
                    raise
                self._free()
                after = tiles(pixels, image.name, image.shown)
        except UserError as error:
            self.failed(f"{image.shown}: {error}")
        else:
            yield from self._numbers([item], [after])

    def _free(self) -> None:
        """Free the memory that a failed attempt, the engine and images that wait to be written still hold."""
        self.release()
        self.translator.engine.release()
        release_cached(self.translator.device)


def translated(translator: Translator, tiles: TiledTranslator | None, batch: list[Item]) -> list[Any]:
    """Translate images whose sizes are equal after padding, by ``tiles`` if that is needed or asked for.

    The result is in the order of ``batch``, with None for an image that the network gives no numbers for.
    Raises NoRoomError for an image that cannot be translated for lack of memory.
    """

    def fail(text: str) -> None:
        raise NoRoomError(text)

    budget = None if tiles is None else budget_of(translator)
    fitting = FittingTranslator(translator, budget, fail, lambda: None, lambda text: None, tiles)
    found = {id(before): after for _, before, after in fitting(batch)}
    return [found.get(id(before)) for _, before in batch]
