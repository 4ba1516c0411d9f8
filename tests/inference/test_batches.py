"""Tests of batches: what waits in memory, and what happens when memory runs out."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Row
from fastcyclegan.errors import UserError, is_out_of_memory
from fastcyclegan.inference import batches
from fastcyclegan.inference.batches import FittingTranslator, Given, Item, NoRoomError, gathered
from fastcyclegan.inference.outputs import Output
from fastcyclegan.inference.tiling import TooLargeError

REFUSED = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)


NO_NUMBERS = 99
"""The value of an image that ``FakeTranslator`` gives no numbers for."""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's class."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("could not create a primitive"),
        OutOfMemoryError(),
        RuntimeError(REFUSED),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_lack_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("a kernel failed"), OSError(28, "No space left"), UserError("x: out of memory")]
)
def test_other_errors_are_not_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)


class FakeEngine:
    """Counts how often its memory was to be freed."""

    def __init__(self) -> None:
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


class FakeTranslator:
    """Inverts images. Fails with ``error`` for more than ``limit`` pixels, and for an image of ``poison``."""

    multiple, device = 4, torch.device("cpu")

    def __init__(
        self,
        limit: float = float("inf"),
        error: Callable[[], Exception] = MemoryError,
        poison: int | None = None,
    ) -> None:
        self.limit, self.error, self.poison = limit, error, poison
        self.engine = FakeEngine()
        self.batches: list[int] = []
        self.kept: list[weakref.ref[Tensor]] = []

    def __call__(self, images: list[Tensor], names: list[str]) -> list[NDArray[np.uint8] | None]:
        assert not any(ref() is not None for ref in self.kept), "the failed attempt is still in memory"
        work = torch.stack(images)
        self.kept.append(weakref.ref(work))
        self.batches.append(len(images))
        if work.numel() // 3 > self.limit or self.poison in work[:, 0, 0, 0].tolist():
            raise self.error()
        return [None if image[0, 0, 0] == NO_NUMBERS else (255 - image).numpy() for image in images]


class FakeBudget:
    """Allows batches of up to ``pixels`` pixels."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def count(self, images: int, height: int, width: int) -> int:
        return min(images, self.pixels // (height * width))

    def describe(self, height: int, width: int) -> str:
        return f"{height}x{width} is too large"


def items(count: int, side: int = 8) -> list[Item]:
    return [
        (Output(Path(f"{n}.png"), Path("out", f"{n}.png")), torch.full((side, side, 3), n, dtype=torch.uint8))
        for n in range(count)
    ]


class FakeTiles:
    """Inverts images by tiles, unless ``errors`` are left to raise. Serves images larger than ``tile``."""

    def __init__(self, tile: int | None = None, *errors: Exception) -> None:
        self.tile, self.rescues, self.errors = tile, tile is None, list(errors)
        self.names: list[tuple[str, str]] = []
        self.lines: list[str] = []
        self.log = self.lines.append

    def serves(self, height: int, width: int) -> bool:
        return self.tile is not None and max(height, width) > self.tile

    def __call__(self, pixels: Tensor, name: str, shown: str) -> NDArray[np.uint8] | None:
        self.names.append((name, shown))
        if self.errors:
            raise self.errors.pop(0)
        return None if pixels[0, 0, 0] == NO_NUMBERS else (255 - pixels).numpy()


def translated(
    translator: FakeTranslator,
    batch: list[Item],
    budget: FakeBudget | None = None,
    release: Any = None,
    tiles: FakeTiles | None = None,
) -> tuple[list[str], list[str]]:
    """Return the names of the images that were translated (correctly), and the descriptions of the others."""
    failed: list[str] = []
    fitting = FittingTranslator(
        translator,  # type: ignore[arg-type]
        budget,  # type: ignore[arg-type]
        failed.append,
        (lambda: None) if release is None else release,
        failed.append,
        tiles,  # type: ignore[arg-type]
    )
    names = []
    for output, before, after in fitting(batch):
        assert np.array_equal(after, 255 - before.numpy())
        names.append(output.source.name)
    return names, failed


@pytest.mark.parametrize("limit", [float("inf"), 100], ids=["together", "alone"])
def test_images_without_numbers_are_named_and_the_others_are_kept(limit: float) -> None:
    batch = items(3)
    batch[1] = (batch[1][0], torch.full((8, 8, 3), NO_NUMBERS, dtype=torch.uint8))
    names, failed = translated(FakeTranslator(limit), batch)
    assert names == ["0.png", "2.png"]
    assert failed == ["the network gives no numbers for 1.png: its weights are too large or damaged"]


@pytest.mark.parametrize(
    "error",
    [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of memory"), lambda: RuntimeError(REFUSED)],
    ids=["MemoryError", "OutOfMemoryError", "RuntimeError"],
)
def test_images_are_tried_alone_if_their_batch_does_not_fit(error: Callable[[], Exception]) -> None:
    """The memory of the failed attempt is free before the next one, and what waits is released."""
    released = []
    translator = FakeTranslator(150, error)
    names, failed = translated(translator, items(3), release=lambda: released.append(True))
    assert names == ["0.png", "1.png", "2.png"]
    assert (failed, translator.batches, len(released)) == ([], [3, 1, 1, 1], 1)
    assert translator.engine.releases == 1


def test_an_image_that_does_not_fit_alone_is_named() -> None:
    """Its batch is translated without it."""
    translator = FakeTranslator(poison=1)
    names, failed = translated(translator, items(3))
    assert names == ["0.png", "2.png"]
    assert failed == [
        "1.png: 8x8 does not fit into the memory of cpu: use --tile auto, --resize N with a smaller N, or a"
        " device with more memory"
    ]
    assert translator.batches == [3, 1, 1, 1]


def test_other_errors_end_the_program() -> None:
    with pytest.raises(RuntimeError, match="a kernel failed"):
        translated(FakeTranslator(0, lambda: RuntimeError("a kernel failed")), items(2))


def test_batches_are_divided_by_the_budget() -> None:
    translator = FakeTranslator()
    names, failed = translated(translator, items(5), FakeBudget(130))
    assert (len(names), failed, translator.batches) == (5, [], [2, 2, 1])


def test_an_image_beyond_the_budget_is_named_without_a_try() -> None:
    translator = FakeTranslator()
    names, failed = translated(translator, items(2), FakeBudget(63))
    assert (names, translator.batches) == ([], [])
    reason = "8x8 does not fit into the memory of cpu (8x8 is too large): use --tile auto, --resize N"
    assert [text.startswith(f"{n}.png: {reason}") for n, text in enumerate(failed)] == [True, True]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_memory_of_a_device_is_freed_before_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """PyTorch keeps freed memory in blocks, which may be too small for the next attempt."""
    translator = FakeTranslator(150)
    freed: list[int] = []
    monkeypatch.setattr(translator, "device", torch.device(device))
    monkeypatch.setattr(f"torch.{device}.empty_cache", lambda: freed.append(len(translator.batches)))
    assert translated(translator, items(3))[0] == ["0.png", "1.png", "2.png"]
    assert freed == [1]


def test_what_waits_is_released_before_an_image_is_given_up() -> None:
    budget = FakeBudget(63)

    def release() -> None:
        budget.pixels = 64

    assert translated(FakeTranslator(), items(2), budget, release) == (["0.png", "1.png"], [])


def test_images_larger_than_a_tile_are_translated_by_tiles() -> None:
    """One at a time, and images of at most one tile as a batch."""
    tiles, translator = FakeTiles(8), FakeTranslator()
    assert translated(translator, items(2, 12), tiles=tiles) == (["0.png", "1.png"], [])
    assert (tiles.names, translator.batches) == ([("0.png", "0.png"), ("1.png", "1.png")], [])
    assert translated(translator, items(2), tiles=tiles) == (["0.png", "1.png"], [])
    assert (len(tiles.names), translator.batches) == (2, [2])


@pytest.mark.parametrize("budget", [FakeBudget(63), None], ids=["the budget", "an error"])
def test_images_that_do_not_fit_are_translated_by_tiles(budget: FakeBudget | None) -> None:
    """The memory is freed before, and a line names each image."""
    tiles, translator = FakeTiles(), FakeTranslator(limit=63)
    assert translated(translator, items(2), budget, tiles=tiles) == (["0.png", "1.png"], [])
    assert [line.endswith(", so it is translated by tiles") for line in tiles.lines] == [True, True]
    assert tiles.lines[0].startswith("0.png: 8x8 does not fit into the memory of cpu")
    assert translator.engine.releases >= 1


def test_tiles_of_a_given_side_do_not_help_an_image_of_one_tile() -> None:
    names, failed = translated(FakeTranslator(limit=63), items(1), tiles=FakeTiles(8))
    assert names == []
    assert failed[0].startswith("0.png: 8x8 does not fit into the memory of cpu: use")


def test_an_image_whose_tiles_fail_is_named_and_the_others_are_translated() -> None:
    tiles = FakeTiles(8, UserError("--tile_storage disk: cannot write"))
    assert translated(FakeTranslator(), items(2, 12), tiles=tiles) == (
        ["1.png"],
        ["0.png: --tile_storage disk: cannot write"],
    )


def test_memory_is_freed_for_tiles_that_do_not_fit() -> None:
    """They are tried once more, unless it was freed before."""
    error = TooLargeError("2 GiB are needed", "memory")
    translator, tiles = FakeTranslator(), FakeTiles(8, error)
    assert translated(translator, items(1, 12), tiles=tiles) == (["0.png"], [])
    assert translator.engine.releases == 1
    failures = ["0.png: 2 GiB are needed: use --tile_storage disk, a smaller --tile or --resize N"]
    assert translated(translator, items(1, 12), tiles=FakeTiles(8, error, error)) == ([], failures)
    tiles = FakeTiles(None, error)
    assert translated(translator, items(1), FakeBudget(1), tiles=tiles) == ([], failures)
    assert len(tiles.names) == 1


def test_images_that_tiles_give_no_numbers_for_are_named() -> None:
    batch = items(1, 12)
    batch[0][1].fill_(NO_NUMBERS)
    names, failed = translated(FakeTranslator(), batch, tiles=FakeTiles(8))
    assert (names, len(failed)) == ([], 1)
    assert failed[0].startswith("the network gives no numbers for 0.png")


def test_all_images_of_a_call_have_a_result_or_it_fails() -> None:
    translator: Any = FakeTranslator()
    batch: list[Item] = [(Given("0", "the image"), pixels) for _, pixels in items(3)]
    batch[1] = (batch[1][0], torch.full((8, 8, 3), NO_NUMBERS, dtype=torch.uint8))
    one, none, two = batches.translated(translator, None, batch)
    assert none is None
    assert [one[0, 0, 0], two[0, 0, 0]] == [255, 253]
    translator.limit = 63
    with pytest.raises(NoRoomError, match=r"^the image: 8x8 does not fit into the memory of cpu"):
        batches.translated(translator, None, batch)


def read(*sides: int) -> list[tuple[Job, Row]]:
    return [
        (Job(output.source, tag=output), torch.zeros(side, side, 3, dtype=torch.uint8))
        for side, (output, _) in zip(sides, items(len(sides)), strict=True)
    ]


def sizes(rows: list[tuple[Job, Row]], batch_size: int) -> list[list[int]]:
    """Return the sides of the images in each batch."""
    found = gathered(rows, FakeTranslator(), batch_size, pytest.fail)  # type: ignore[arg-type]
    return [[pixels.shape[0] for _, pixels in batch] for batch in found]


def test_images_of_one_padded_size_form_batches() -> None:
    assert sizes(read(8, 7, 12, 5, 8, 12), 3) == [[8, 7, 5], [12, 12], [8]]


def test_few_images_wait_for_others_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are bounded by their number and by their pixels."""
    different = [8 + 4 * n for n in range(9)]
    assert sizes(read(*different), 2)[0] == [36]  # the largest of 8
    monkeypatch.setattr(batches, "WAITING_PIXELS", 8 * 8 + 12 * 12)
    assert sizes(read(*different), 2)[:2] == [[12], [16]]
    sides = [8 + 4 * (n % 5) for n in range(100)]
    assert sorted(itertools.chain(*sizes(read(*sides), 2))) == sorted(sides)


def test_large_images_are_translated_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_PIXELS", 300)
    assert sizes(read(8, 8, 16, 16, 8, 8, 8), 8) == [[16], [16], [8, 8, 8, 8], [8]]


def test_images_that_were_read_before_a_bad_one_are_translated() -> None:
    """The callback decides whether to read the images after it."""
    bad = BadImageError("bad.png", "broken")
    rows: list[tuple[Job, Row]] = [*read(8, 12), (Job(Path("bad.png")), bad), *read(8)]
    for continues, expected in ((True, 3), (False, 2)):
        seen: list[BadImageError] = []

        def note(error: BadImageError, seen: Any = seen, continues: bool = continues) -> bool:
            seen.append(error)
            return continues

        found = gathered(rows, FakeTranslator(), 8, note)  # type: ignore[arg-type]
        assert sum(map(len, found)) == expected
        assert seen == [bad]
