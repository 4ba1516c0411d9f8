"""Convert images of any mode: 16 bits, transparency, and values that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data import eight_bits
from fastcyclegan.data.eight_bits import dark_values, is_dark
from fastcyclegan.data.image_file import (
    BadImageError,
    examine,
    open_image,
    upright,
)
from tests.conftest import saved

RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    """16-bit values are scaled to 8 bits; Pillow's own conversion would turn every value above 255 white."""
    path = saved(tmp_path, Image.fromarray(RAMP), "deep" + suffix)
    assert np.array_equal(np.asarray(open_image(path, 1)), np.arange(256).reshape(16, 16))
    assert np.array_equal(np.asarray(open_image(path, 3))[:, :, 1], np.arange(256).reshape(16, 16))


def test_big_endian_values_are_read_alike(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP.astype(">u2")), "deep.tif")
    assert Image.open(path).mode == "I;16B"
    assert np.array_equal(np.asarray(open_image(path, 1)), np.arange(256).reshape(16, 16))
    assert examine(path).brightest == 255


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_all_modes_with_alpha_are_placed_on_white(mode: str) -> None:
    image = Image.new("LA", (2, 2), (0, 0)).convert("RGBA").convert("LA" if mode[0] == "L" else "RGBA")
    if mode == "PA":
        image = Image.new("PA", (2, 2), (0, 0))
    elif mode != image.mode:
        image = image.convert(mode)
    assert upright(image).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_transparency_shows_white(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RAMP), "t.png", transparency=257 * 9)
    pixels = np.asarray(open_image(path, 1)).reshape(-1)
    assert pixels[[8, 9, 10]].tolist() == [8, 255, 10]


def test_rejects_32_bit_and_floating_point_values(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "deep.tif")
    with pytest.raises(BadImageError, match=r"deep.tif: 32-bit values"):
        open_image(path)
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)), "float.tif")
    with pytest.raises(BadImageError, match=r"float.tif: floating-point values"):
        open_image(path)


def test_refuses_integers_of_unknown_range(tmp_path: Path) -> None:
    """Values 0 to 255 in 32 bits, or in 16 bits with a sign, would come out nearly black."""
    values = np.arange(256, dtype=np.int32).reshape(16, 16)
    path = saved(tmp_path, Image.fromarray(values), "values.tif")
    with pytest.raises(BadImageError, match=r"values.tif: 32-bit values are not supported; convert"):
        open_image(path)
    with pytest.raises(BadImageError, match=r"32-bit values"):
        examine(path)
    with pytest.raises(BadImageError, match=r"the image: 32-bit values"):
        upright(Image.open(path))
    with pytest.raises(BadImageError, match=r"the image: 32-bit values"):
        upright(Image.fromarray(values))
    assert np.asarray(upright(Image.fromarray(RAMP), 1)).reshape(-1).tolist() == list(range(256))


def test_large_images_are_converted_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alpha and 16 bits take no second copy of the image. The result does not depend on the bands."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 50, 4), dtype=np.uint8)
    deep = noise[:, :, 0].astype(np.uint16) * 200
    paths = [
        saved(tmp_path, Image.fromarray(noise), "rgba.png"),
        saved(tmp_path, Image.fromarray(noise).quantize(16), "palette.png", transparency=3),
        saved(tmp_path, Image.fromarray(deep), "deep.png", transparency=int(deep[0, 0])),
    ]
    whole = [np.asarray(open_image(path, channels)) for path in paths for channels in (1, 3)]
    monkeypatch.setattr(eight_bits, "_BAND_PIXELS", 130)
    bands = [np.asarray(open_image(path, channels)) for path in paths for channels in (1, 3)]
    assert all(np.array_equal(x, y) for x, y in zip(whole, bands, strict=True))


@pytest.mark.parametrize(
    ("values", "brightest"), [(RAMP, 255), (RAMP >> 4, 16), (RAMP >> 2, 64), (RAMP >> 8, 1), (RAMP * 0, 0)]
)
def test_the_brightest_value_of_16_bit_files_is_noted(
    tmp_path: Path, values: np.ndarray, brightest: int
) -> None:
    for name in ("x.png", "x.tif"):
        assert examine(saved(tmp_path, Image.fromarray(values), name)).brightest == brightest
    assert is_dark(brightest) == (brightest < 255)


def test_8_bit_files_have_no_16_bit_values(tmp_path: Path) -> None:
    for n, mode in enumerate(("RGB", "L", "P", "RGBA", "1")):
        assert examine(saved(tmp_path, Image.new(mode, (8, 8)), f"{n}.png")).brightest is None


def test_the_warning_about_dark_values_names_their_bits() -> None:
    assert dark_values("x", 16) == (
        "the brightest value of x is 16 of 255 after scaling to 8 bits, as if the files stored 12-bit values;"
        " multiply those by 16"
    )
    for brightest, bits in ((64, 14), (15, 12), (4, 10), (1, 8), (0, 8)):
        assert f"stored {bits}-bit values" in dark_values("x", brightest)


def test_transparency_shows_white(tmp_path: Path) -> None:
    """Fully transparent pixels become white. They are stored as red, which dropping alpha would show."""
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0], rgba[1] = (255, 0, 0, 0), (0, 0, 255, 255)
    pixels = np.asarray(open_image(saved(tmp_path, Image.fromarray(rgba), "a.png")))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 0].tolist() == [0, 0, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    pixels = np.asarray(open_image(saved(tmp_path, palette, "p.png", transparency=0)))
    assert pixels[0].tolist() == [[255, 255, 255], [200, 100, 50]]
    gray_alpha = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 128)])
    assert np.asarray(open_image(saved(tmp_path, gray_alpha, "la.png"), 1))[0, 0] == 127


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("1", 1, [255] * 3), ("L", 77, [77] * 3), ("CMYK", (0, 255, 255, 0), [255, 0, 0])],
)
def test_modes_become_rgb(tmp_path: Path, mode: str, colour: object, expected: list[int]) -> None:
    path = saved(tmp_path, Image.new(mode, (8, 8), colour), "m.tif")
    assert np.asarray(open_image(path))[4, 4].tolist() == expected
