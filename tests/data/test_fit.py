"""Resize and crop: compare each preprocess mode with Pillow and with sizes computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.config import DataConfig, Preprocess
from fastcyclegan.data.fit import Fit, load_halves, load_pixels, require_file_channels, take_view
from fastcyclegan.data.halves import Half
from fastcyclegan.data.image_file import (
    BadImageError,
)
from fastcyclegan.data.sample_plan import View
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize
from tests.conftest import saved


def test_memory_that_runs_out_during_the_resize_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, Image.new("RGB", (8, 8)), "x.png")

    def fails(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fails)
    with pytest.raises(UserError, match=r"x\.png: cannot be resized to 16x16 pixels: out of memory"):
        load_pixels(path, Fit("square", 16))


# (reason, mode, load, crop, size before, size after), according to the official code. Crops are a side, or
# height and width; sizes are width and height.
SIZES: list[tuple[str, Preprocess, int, CropSize, tuple[int, int], tuple[int, int]]] = [
    ("square, whatever the shape", "resize_and_crop", 286, 256, (600, 400), (286, 286)),
    ("unchanged", "crop", 286, 256, (601, 407), (601, 407)),
    ("height in proportion, rounded down", "scale_width_and_crop", 300, 256, (600, 601), (300, 300)),
    ("height at least the crop", "scale_width_and_crop", 300, 256, (600, 100), (300, 256)),
    ("height at least that of the crop", "scale_width_and_crop", 300, (96, 160), (600, 100), (300, 96)),
    ("the same without a crop", "scale_width", 300, (96, 160), (600, 100), (300, 96)),
    ("square, whatever the shape of the crop", "resize_and_crop", 286, (96, 160), (600, 400), (286, 286)),
    ("sides rounded to 4, or the output would be larger", "scale_width", 286, 256, (572, 601), (288, 300)),
    ("half to even: 62/4 = 15.5 and 66/4 = 16.5 both to 16", "none", 286, 256, (62, 66), (64, 64)),
    ("nearest multiple, not the next", "none", 286, 256, (65, 67), (64, 68)),
    ("never below the minimum of a network", "none", 286, 256, (1, 9), (8, 8)),
]


@pytest.mark.parametrize(
    ("reason", "mode", "load", "crop", "before", "after"), SIZES, ids=[row[0] for row in SIZES]
)
def test_sizes_by_mode(
    reason: str, mode: Preprocess, load: int, crop: CropSize, before: tuple[int, int], after: tuple[int, int]
) -> None:
    assert Fit.of(DataConfig(preprocess=mode, load_size=load, crop_size=crop)).resized(before) == after


def test_exact_is_the_size_of_the_crop() -> None:
    """As the official test resizes images. Nothing is cropped."""
    fit = Fit("exact", load_size=286, crop_size=(96, 160))
    assert (fit.resized((600, 400)), fit.crop) == ((160, 96), None)


def test_sizes_for_a_unet() -> None:
    assert Fit("none", multiple=256).resized((300, 700)) == (256, 768)


def test_resizes_with_pillow_bicubic_and_crops_exactly(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    path = saved(tmp_path, image, "x.png")
    fit = Fit("resize_and_crop", 40, 32)
    pixels = load_pixels(path, fit)
    assert np.array_equal(pixels, np.asarray(image.resize((40, 40), Image.Resampling.BICUBIC)))
    view = take_view(pixels, fit, View(x=0.999, y=0.5, flip=True))
    assert np.array_equal(view, pixels[4:36, 8:40][:, ::-1])  # int(0.5 * 9) = 4, int(0.999 * 9) = 8
    assert np.array_equal(take_view(pixels, fit, View(0.0, 0.0, False)), pixels[:32, :32])
    assert np.array_equal(take_view(pixels, fit, None), pixels)


def test_crops_to_height_and_width(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    fit = Fit("crop", 0, (32, 60))
    view = take_view(pixels, fit, View(x=0.999, y=0.5, flip=False))
    assert np.array_equal(view, pixels[9:41, 10:70])  # int(0.5 * 19) = 9, int(0.999 * 11) = 10
    assert fit.crop == (60, 32)
    assert fit.too_small((70, 50)) == fit.too_small((60, 32)) == ""
    for size in ((70, 31), (59, 50)):
        assert fit.too_small(size) == f"{size[0]}x{size[1]} is too small for a crop of 60x32 pixels"


def test_every_crop_position_is_equally_likely(tmp_path: Path) -> None:
    pixels = np.arange(11, dtype=np.uint8).reshape(1, 11, 1).repeat(8, axis=0)
    lefts = [
        int(take_view(pixels, Fit("crop", 0, 8), View(u / 400, 0.0, False))[0, 0, 0]) for u in range(400)
    ]
    assert np.bincount(lefts).tolist() == [100, 100, 100, 100]


def test_image_smaller_than_the_crop(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (100, 30)), "small.png")
    with pytest.raises(BadImageError, match=r"small.png: 100x30 is too small for a crop of 64 pixels"):
        load_pixels(path, Fit("crop", 0, 64))


def test_gray_has_one_channel(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (10, 10), (255, 0, 0)), "red.png")
    assert load_pixels(path, Fit("square", 8, channels=1)).shape == (8, 8, 1)
    assert load_pixels(path, Fit("square", 8, channels=1))[0, 0, 0] == 76  # ITU-R 601: 0.299 * 255


@pytest.mark.parametrize("half", ["left", "right"])
def test_a_half_is_cut_out_before_the_resize(tmp_path: Path, half: Half) -> None:
    """So that no pixel of the other half has an influence."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 80, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), "x.png")
    alone = np.ascontiguousarray(pixels[:, :40] if half == "left" else pixels[:, 40:])
    expected = load_pixels(saved(tmp_path, Image.fromarray(alone), "half.png"), Fit("square", 24))
    assert np.array_equal(load_pixels(path, Fit("square", 24), half=half), expected)
    assert np.array_equal(load_pixels(path, Fit(), half=half), alone)
    one, other = load_halves(path, Fit("square", 24), ["right", "left"])
    assert np.array_equal(expected, other if half == "left" else one)


def test_halves_that_cannot_be_used(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (41, 30)), "odd.png")
    with pytest.raises(BadImageError, match=r"odd.png: 41x30 has an odd width, so it cannot be cut into two"):
        load_pixels(path, Fit(), half="left")
    path = saved(tmp_path, Image.new("RGB", (40, 30)), "small.png")
    with pytest.raises(BadImageError, match=r"small.png: cut in halves, 20x30 is too small for a crop of 24"):
        load_halves(path, Fit("crop", 0, 24), ["left", "right"])


def test_channels_that_no_file_has() -> None:
    require_file_channels({"input_nc": 3, "output_nc": 1})
    with pytest.raises(UserError, match=r"^output_nc is 2, but images from files have 3 channels \(colour\)"):
        require_file_channels({"input_nc": 3, "output_nc": 2})
