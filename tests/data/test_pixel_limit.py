"""Tests of Pillow's limit on pixels: images beyond it are read if allowed, and nothing else changes."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest
from PIL import Image

from fastcyclegan.data import pixel_limit
from fastcyclegan.data.image_file import READABLE
from fastcyclegan.data.pixel_limit import beyond_limit, max_pixels, open_beyond_limit

FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "several images": ("MPO", "RGB", {}),
    "png": ("PNG", "RGB", {}),
    "webp": ("WEBP", "RGB", {"lossless": True}),
    "avif": ("AVIF", "RGB", {"quality": 100}),
    "uncompressed tiff": ("TIFF", "RGB", {}),
    "compressed tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "gif": ("GIF", "L", {}),
    "bmp": ("BMP", "RGB", {}),
    "ppm": ("PPM", "RGB", {}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
    "tga": ("TGA", "RGB", {}),
}
LIMIT = 100


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_beyond_the_limit(name: str) -> None:
    form, mode, options = FILES[name]
    if form not in (*READABLE, "MPO"):
        pytest.skip(f"this Pillow does not read {form}")
    image, buffer = Image.linear_gradient("L").resize((20, 12)).convert(mode), io.BytesIO()
    if form == "MPO":
        options = {"save_all": True, "append_images": [image]}
    image.save(buffer, form, **options)
    data = buffer.getvalue()
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data)).load()
    opened = open_beyond_limit(data, READABLE)
    assert Image.MAX_IMAGE_PIXELS == LIMIT
    beyond_limit(opened.load)
    assert Image.MAX_IMAGE_PIXELS == LIMIT
    assert opened.size == (20, 12)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", None)
        wanted = Image.open(io.BytesIO(data)).convert("RGB")
    assert opened.convert("RGB").tobytes() == wanted.tobytes()


def test_what_is_no_image_is_not_read() -> None:
    with pytest.raises(Image.UnidentifiedImageError):
        open_beyond_limit(b"no image" * 100, READABLE)


def test_the_limit_is_restored_after_an_error() -> None:
    def fails() -> None:
        if Image.MAX_IMAGE_PIXELS is not None:
            raise Image.DecompressionBombError
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        beyond_limit(fails)
    assert Image.MAX_IMAGE_PIXELS == LIMIT


def test_readers_of_ours_see_the_limit_while_others_lift_it() -> None:
    """Several threads lift it at once, and the last one restores it."""
    inside, leave = threading.Barrier(3), threading.Event()

    def lift() -> None:
        with pixel_limit._lifting():
            inside.wait(60)
            leave.wait(60)

    threads = [threading.Thread(target=lift) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(60)
    assert Image.MAX_IMAGE_PIXELS is None
    assert max_pixels() == 2 * LIMIT
    leave.set()
    for thread in threads:
        thread.join(60)
    assert Image.MAX_IMAGE_PIXELS == LIMIT
    assert max_pixels() == 2 * LIMIT


def test_no_limit_stays_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert max_pixels() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_the_limit() -> None:
    with pixel_limit._lifting():
        child = os.fork()
        if child == 0:
            os._exit(0 if (Image.MAX_IMAGE_PIXELS, max_pixels()) == (LIMIT, 2 * LIMIT) else 1)
        assert os.waitpid(child, 0)[1] == 0
