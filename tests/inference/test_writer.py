"""Tests of writing in the background: bounded memory, images that fail, and errors of the disk."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.inference import writer as module
from fastcyclegan.inference.outputs import Output
from fastcyclegan.inference.writer import Writer

PIXELS = np.zeros((10, 10, 3), np.uint8)


def outputs(folder: Path, count: int) -> list[Output]:
    return [Output(Path(f"{n}.jpg"), folder / "deep" / f"{n}.png") for n in range(count)]


def test_images_are_written_and_counted(tmp_path: Path) -> None:
    with Writer(2, pytest.fail) as writer:
        for output in outputs(tmp_path, 20):
            writer.save(PIXELS, output)
    assert writer.written == 20
    assert len(list((tmp_path / "deep").iterdir())) == 20


@pytest.mark.parametrize(("limit", "most"), [(250, 2), (50, 1), (10_000, 8)])
def test_waiting_images_are_bounded_by_their_number_and_their_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    """One image waits at most if it is larger than the limit, so that it is written at all."""
    monkeypatch.setattr(module, "WAITING_PIXELS", limit)
    unfinished = [0]
    lock = threading.Lock()

    def save(pixels: object, output: Output) -> None:
        with lock:
            unfinished[0] -= 1

    monkeypatch.setattr(module, "_save", save)
    with Writer(4, pytest.fail) as writer:
        for output in outputs(tmp_path, 30):
            writer.save(PIXELS, output)
            assert len(writer.waiting) <= most
            assert writer.pixels == 100 * len(writer.waiting)
    assert (unfinished[0], writer.written, writer.pixels) == (-30, 30, 0)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), OSError("out of memory error when writing")],
)
def test_a_translation_that_cannot_be_encoded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    save_image = module.save_image

    def save(image: Image.Image, target: Path) -> None:
        if target.name == "3.png":
            raise error
        save_image(image, target)

    monkeypatch.setattr(module, "save_image", save)
    failed: list[str] = []
    with Writer(1, failed.append) as writer:
        for output in outputs(tmp_path, 6):
            writer.save(PIXELS, output)
    assert failed == ["3.jpg: its translation cannot be written: out of memory"]
    assert writer.written == 5


def test_an_error_of_the_disk_is_raised_after_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is raised, or the one that ended the block."""
    save_image = module.save_image

    def save(image: Image.Image, target: Path) -> None:
        if target.name in ("0.png", "2.png"):
            raise OSError(28, "No space left on device", target.name)
        save_image(image, target)

    monkeypatch.setattr(module, "save_image", save)

    def write_all(writer: Writer, error: Exception | None) -> None:
        with writer:
            for output in outputs(tmp_path, 6):
                writer.save(PIXELS, output)
            if error is not None:
                raise error

    for error, kind in ((None, OSError), (KeyError("0.png"), KeyError)):
        writer = Writer(4, pytest.fail)
        with pytest.raises(kind, match=r"0\.png"):
            write_all(writer, error)
        assert writer.written == 4


def test_all_threads_run_from_the_beginning() -> None:
    """When memory is full of images, none could be started any more."""
    before = threading.active_count()
    with Writer(3, pytest.fail):
        assert threading.active_count() == before + 3
    assert threading.active_count() == before
