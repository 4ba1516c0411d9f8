"""Decode image files: formats, orientation, what is whole, and what cannot be read."""

from __future__ import annotations

import errno
import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.image_file import (
    FORMATS,
    READABLE,
    SUFFIXES,
    BadImageError,
    examine,
    is_whole,
    open_image,
    read_header,
)
from fastcyclegan.errors import UserError
from tests.conftest import saved

RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)


def test_an_upright_rgb_image_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, Image.new("RGB", (8, 8)), "x.png")
    for name in ("copy", "convert", "transpose", "crop"):
        monkeypatch.setattr(Image.Image, name, lambda *arguments, name=name: pytest.fail(name))
    assert open_image(path).size == (8, 8)


SUFFIXES_READ = """.jpg .jpeg .jpe .jfif .png .apng .webp .tif .tiff .gif .bmp .dib .ppm .pgm .pbm .pnm .tga
.avif .jp2 .j2k .j2c .jpx""".split()


@pytest.mark.parametrize("suffix", SUFFIXES_READ)
def test_reads_the_formats_of_photographs(tmp_path: Path, suffix: str) -> None:
    if suffix not in SUFFIXES and suffix in (".avif", ".jp2", ".j2k", ".j2c", ".jpx"):
        pytest.skip("this Pillow is built without the format")
    form = next(form for form, suffixes in FORMATS.items() if suffix in suffixes)
    path = tmp_path / f"x{suffix}"
    Image.new("RGB", (16, 12), (250, 10, 250)).save(path, form)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert np.abs(np.asarray(image).astype(int) - (250, 10, 250)).max() < 16
    assert examine(path).size == (16, 12)


def test_the_content_decides_on_the_format_among_those_of_the_list(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "jpeg.png", "JPEG")
    assert open_image(tmp_path / "jpeg.png").size == (16, 12)
    Image.new("RGB", (16, 12)).save(tmp_path / "tga.png", "TGA")  # has no signature: its suffix must name it
    with pytest.raises(BadImageError, match=r"tga.png: not an image in one of the supported formats"):
        open_image(tmp_path / "tga.png")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["eps.png", "eps.jpg", "eps.tif", "eps.tga", "eps.ppm"])
def test_other_formats_are_refused_whatever_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pillow would start another program, Ghostscript, for an EPS file."""
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail("started a program"))
    path = tmp_path / name
    path.write_bytes(EPS)
    for read in (open_image, examine):
        with pytest.raises(BadImageError, match=rf"{name}: not an image in one of the supported formats"):
            read(path)
    for form in ("ICO", "PCX", "DDS", "SGI"):
        Image.new("RGB", (16, 16)).save(path, form)
        with pytest.raises(BadImageError, match="not an image in one"):
            open_image(path)


def exif_text(orientation: int) -> str:
    """Return EXIF data as ImageMagick writes it into a text of a PNG file."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    return f"\nexif\n{len(data):8}\n{data.hex()}\n"


@pytest.mark.parametrize("keyword", ["Raw profile type exif", "XML:com.adobe.xmp"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_and_xmp_data_in_texts_turn_png_images(tmp_path: Path, keyword: str, orientation: int) -> None:
    text = exif_text(orientation)
    info = PngImagePlugin.PngInfo()
    if keyword.startswith("XML"):
        info.add_itxt(keyword, f'<rdf:Description tiff:Orientation="{orientation}"/>')
    else:
        info.add_text(keyword, text, zip=orientation == 6)
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "x.png", pnginfo=info)
    turned = np.rot90(noise, 2 if orientation == 3 else 3)
    assert np.array_equal(np.asarray(open_image(path)), turned)
    assert examine(path).size == (turned.shape[1], turned.shape[0])
    assert read_header(path.read_bytes()) == ((30, 20), False)


@pytest.mark.parametrize("form", ["tiff", "avif", "webp", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_all_formats(tmp_path: Path, form: str, orientation: int) -> None:
    if form.upper() not in READABLE:
        pytest.skip("this Pillow is built without the format")
    corners = Image.new("RGB", (64, 48))
    corners.paste((255, 0, 0), (0, 0, 32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{form}"
    corners.save(path, form.upper(), exif=exif, quality=100)
    image = open_image(path)
    # The corner where the stored image's first row and column go, by the table of the EXIF standard.
    corner = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[
        orientation
    ]
    assert image.size == ((64, 48) if orientation < 5 else (48, 64)) == examine(path).size
    for x in (0, 1):
        for y in (0, 1):
            pixel = image.getpixel((x * (image.width - 1), y * (image.height - 1)))
            assert (pixel[0] > 200) == ((x, y) == corner)


def test_a_png_without_its_last_rows_is_refused(tmp_path: Path) -> None:
    """Pillow would leave the rows black."""
    path = saved(tmp_path, Image.new("RGB", (4, 4), "white"), "x.png")
    data = path.read_bytes()
    start = data.index(b"IDAT") - 4
    rows = zlib.compress(b"\0" + b"\xff" * 12)
    content = b"IDAT" + rows
    short = struct.pack(">I", len(rows)) + content + struct.pack(">I", zlib.crc32(content))
    path.write_bytes(data[:start] + short + data[-12:])
    for read in (open_image, examine):
        with pytest.raises(BadImageError, match=r"x.png: the image ends before its last row"):
            read(path)
    assert not is_whole(path.read_bytes())
    assert is_whole(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_whose_rest_is_zeros_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    """As after a crash of the machine that wrote it. Pillow would make the rest gray."""
    noise = np.random.default_rng(0).integers(0, 256, (44, 52, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "x.jpg", **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3].ljust(len(data), b"\0"))
    for read in (open_image, examine):
        with pytest.raises(BadImageError, match=r"x.jpg: "):
            read(path)
    assert not is_whole(path.read_bytes())
    assert is_whole(data)


def test_a_png_whose_rest_is_zeros_is_refused(tmp_path: Path) -> None:
    """Pillow would leave the rest black, if the zeros happen to be valid compressed data."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise).resize((90, 80)), "x.png", compress_level=9)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    for read in (open_image, examine):
        with pytest.raises(BadImageError, match=r"x.png: the image data are damaged"):
            read(path)
    assert not is_whole(path.read_bytes())


# An illegal marker in the scan, which Pillow refuses, but which other decoders pass over.
def test_whole_means_the_same_in_the_quick_check(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (44, 52, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), "x.jpg")
    data = path.read_bytes()
    assert is_whole(data)
    for place in (-300, -100, -20):
        path.write_bytes(data[:place] + b"\xff\x4a" + data[place + 2 :])
        assert not is_whole(path.read_bytes())
        with pytest.raises(BadImageError, match="broken data stream"):
            open_image(path)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_decoder_without_memory_is_no_bad_image(tmp_path: Path) -> None:
    """Some decoders report a lack of memory as a broken file."""
    for form in ("AVIF", "JPEG2000", "WEBP", "JPEG", "PNG", "TIFF", "GIF"):
        if form in READABLE:
            Image.new("RGB", (2000, 2000)).save(tmp_path / f"x.{form}", form)
    code = f"""
import resource
from pathlib import Path
from fastcyclegan.data.image_file import BadImageError, examine
from fastcyclegan.data.native_libraries import return_memory
from PIL import Image
Image.init()
examine("{tmp_path}/x.PNG")
return_memory()
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 2**21, -1))
for path in sorted(Path("{tmp_path}").glob("x.*")):
    try:
        examine(path)
    except BadImageError as error:
        print(path.suffix, error.is_lack_of_memory, error.is_lasting)
    else:
        print(path.suffix, "decoded")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"{path.suffix} True False" for path in sorted(tmp_path.glob("x.*"))
    ], ended.stdout


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(saved(tmp_path, image, "turned.jpg", exif=exif)).size == (20, 30)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_names_files_that_are_not_images(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=r"x\.png: ."):
        open_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm"])
def test_names_files_wherever_they_are_truncated(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    whole = saved(tmp_path, noise, "whole" + suffix).read_bytes()
    for share in (0.05, 0.3, 0.6, 0.9):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadImageError, match="cut"):
            open_image(path)


def test_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone.png: no such file"):
        open_image(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("error", "is_bad", "message"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), False, "cannot be read: Too many open files"),
        (
            OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
            False,
            "cannot be read: Too many open files in sys",
        ),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), False, "cannot be read: out of memory"),
        (MemoryError(), False, "cannot be read: out of memory"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), True, "Input/output error"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), True, "Permission denied"),
    ],
)
def test_a_lack_of_files_or_memory_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_bad: bool, message: str
) -> None:
    path = saved(tmp_path, Image.new("RGB", (8, 8)), "x.png")

    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UserError, match=rf"x\.png.*{message}") as raised:
        load_pixels(path, Fit())
    assert (isinstance(raised.value, BadImageError) and not raised.value.is_lack_of_memory) == is_bad
    assert not getattr(raised.value, "is_lasting", False)


# Files that DALI can decode in place of Pillow, and files that must be left to Pillow.
PLAIN = {
    "a.jpg": ("RGB", {"quality": 80}),
    "gray.jpg": ("L", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "a.png": ("RGB", {}),
    "gray.png": ("L", {}),
}
ODD = {
    "cmyk.jpg": ("CMYK", {}),
    "rgb_coded.jpg": ("RGB", {"keep_rgb": True}),
    "palette.png": ("P", {}),
    "alpha.png": ("RGBA", {}),
    "gray_alpha.png": ("LA", {}),
    "key.png": ("RGB", {"transparency": (1, 2, 3)}),
    "bits.png": ("1", {}),
    "a.tif": ("RGB", {}),
    "a.webp": ("RGB", {}),
    "a.bmp": ("RGB", {}),
}


@pytest.mark.parametrize("name", [*PLAIN, *ODD])
def test_recognises_files_that_every_decoder_reads_alike(tmp_path: Path, name: str) -> None:
    mode, options = {**PLAIN, **ODD}[name]
    data = saved(tmp_path, Image.new(mode, (12, 10)), name, **options).read_bytes()
    assert read_header(data) == ((12, 10), name in PLAIN)
    assert not read_header(data[:-3])[1]
    assert not read_header(data + b"more")[1]


def test_rotated_16_bit_and_animated_files_are_not_plain(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (12, 10)), Image.Exif()
    exif[0x0112] = 2  # flipped horizontally, which the size does not show
    for name in ("turned.jpg", "turned.png"):
        assert not read_header(saved(tmp_path, image, name, exif=exif).read_bytes())[1]
    exif[0x0112] = 1
    assert read_header(saved(tmp_path, image, "upright.jpg", exif=exif).read_bytes()) == ((12, 10), True)
    assert read_header(saved(tmp_path, Image.fromarray(RAMP), "deep.png").read_bytes()) == ((16, 16), False)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (12, 10), "red")]}
    assert not read_header(saved(tmp_path, image, "moving.png", **frames).read_bytes())[1]
    assert read_header(b"") == ((0, 0), False)
