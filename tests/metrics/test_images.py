"""Sets of image files: what is read, which sizes they have, their digest, and their kinds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.fit import Fit
from fastcyclegan.data.halves import Half
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.errors import UserError
from fastcyclegan.metrics.images import ImageFiles, as_rgb, described_kinds
from tests.conftest import saved, write_images


def test_gray_values_count_as_red_green_and_blue() -> None:
    gray = np.random.default_rng(0).integers(0, 256, (4, 5, 1), dtype=np.uint8)
    assert np.array_equal(as_rgb(gray), np.concatenate([gray] * 3, 2))
    colour = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert as_rgb(colour) is colour
    with pytest.raises(UserError, match="with 3 channels or 1, got 4"):
        as_rgb(np.zeros((4, 5, 4), np.uint8))


@pytest.mark.parametrize(
    ("fit", "half"),
    [
        (Fit(), None),
        (Fit("exact", crop_size=(8, 12)), None),
        (Fit("none", multiple=4, channels=1), None),
        (Fit(), "left"),
        (Fit("exact", crop_size=(9, 9)), "right"),
    ],
)
def test_sizes_are_those_of_the_images_that_are_read(tmp_path: Path, fit: Fit, half: Half | None) -> None:
    """Also of images that EXIF turns by 90 degrees."""
    files = write_images(tmp_path, 2, size=(26, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    files.append(saved(tmp_path, Image.new("RGB", (26, 20)), "turned.jpg", exif=exif))
    images = ImageFiles(files, fit, half)
    for n in range(len(images)):
        assert images.load(n).shape[2] == fit.channels
        height, width, channels = images.read(n).shape
        assert (images.size(n), channels) == ((width, height), 3)


def test_a_file_without_a_header_has_no_size(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    os.mkfifo(tmp_path / "pipe.png")
    images = ImageFiles([tmp_path / f"{name}.png" for name in ("text", "pipe", "missing")])
    assert [images.size(n) for n in range(3)] == [(0, 0)] * 3
    assert images.kinds == {"jpeg": 0, "transparent": 0, "gray": 0}
    for n in range(3):
        with pytest.raises(BadImageError):
            images.read(n)


def test_the_digest_tells_other_images_and_other_ways_to_read_them(tmp_path: Path) -> None:
    files = write_images(tmp_path / "a", 3)
    images = ImageFiles(files)
    assert images.digest == ImageFiles(list(files)).digest
    moved = write_images(tmp_path / "b" / "c", 3)
    assert ImageFiles(moved).digest == images.digest
    others = [
        ImageFiles(files[::-1]),
        ImageFiles(files[:2]),
        ImageFiles(files, half="left"),
        ImageFiles(files, half="right"),
        ImageFiles(files, Fit(channels=1)),
        ImageFiles(files, Fit("exact", crop_size=(16, 16))),
        ImageFiles(files, Fit("exact", crop_size=(16, 24))),
        ImageFiles(write_images(tmp_path / "d", 3, seed=1)),
    ]
    assert len({each.digest for each in (images, *others)}) == len(others) + 1
    # The limit of sizes changes no image.
    assert ImageFiles(files, replace(images.fit, any_size=True)).digest == images.digest


def test_a_changed_file_is_another_image(tmp_path: Path) -> None:
    files = write_images(tmp_path, 2)
    before = ImageFiles(files).digest
    data = files[1].read_bytes()
    files[1].write_bytes(data + b"\0")
    assert ImageFiles(files).digest != before
    files[1].write_bytes(data)
    assert ImageFiles(files).digest == before


def test_bytes_that_move_from_one_file_to_the_next_are_other_images(tmp_path: Path) -> None:
    def digest(*contents: bytes) -> str:
        files = [tmp_path / f"{n}.png" for n in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        return ImageFiles(files).digest

    assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abc", b"")}) == 4


def test_files_that_cannot_be_read_have_no_digest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (("missing.png", "no such file"), ("pipe.png", "not a regular file")):
        with pytest.raises(BadImageError, match=f"{name}: {message}"):
            _ = ImageFiles([tmp_path / name]).digest


def test_the_kinds_of_files_are_counted(tmp_path: Path) -> None:
    colour = Image.new("RGB", (9, 9), "red")
    palette = colour.convert("P")
    files = [
        saved(tmp_path, colour, "a.jpg"),
        saved(tmp_path, colour.convert("L"), "b.jpg"),
        saved(tmp_path, colour, "c.png"),
        saved(tmp_path, colour.convert("RGBA"), "d.png"),
        saved(tmp_path, colour.convert("LA"), "e.png"),
        saved(tmp_path, palette, "f.png", transparency=0),
        saved(tmp_path, colour.convert("1"), "g.png"),
        saved(tmp_path, Image.new("I;16", (9, 9)), "h.png"),
        saved(tmp_path, colour, "i.webp"),
    ]
    kinds = ImageFiles(files).kinds
    assert kinds == {"jpeg": 2, "transparent": 3, "gray": 4}
    assert described_kinds(kinds, "photos") == [
        "photos: 2 images are JPEG, whose compression has changed the pixels",
        "photos: 3 images are partly transparent, and put on white",
        "photos: 4 images are gray: the values count as red, green and blue",
    ]
    assert described_kinds(ImageFiles(files[2:3]).kinds, "photos") == []


def test_transparent_pixels_show_white(tmp_path: Path) -> None:
    file = saved(tmp_path, Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "a.png")
    assert (ImageFiles([file]).read(0) == 255).all()
