"""Plain files: which structures of JPEG and PNG files are recognised as read alike by every decoder."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.plain_files import (
    ends_in_a_scan,
    fault_in_png,
    is_plain_jpeg,
    is_plain_png,
    jpeg_scans,
)


def encoded(form: str, mode: str = "RGB", size: tuple[int, int] = (50, 43), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, form, **options)
    return out.getvalue()


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Insert a segment after the start of a JPEG file."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(data: bytes, name: bytes, content: bytes = b"") -> bytes:
    """Insert a chunk after the header of a PNG file."""
    return data[:33] + chunk(name, content) + data[33:]


JPEG, RESTARTS = encoded("JPEG"), encoded("JPEG", restart_marker_rows=1)
PNG = encoded("PNG")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"restart_marker_blocks": 2},
        {"subsampling": 0, "icc_profile": b"profile"},
        {"subsampling": 1, "comment": b"comment"},
        {"mode": "L"},
        {"mode": "L", "progressive": True, "restart_marker_blocks": 3},
        {"size": (1, 1)},
        {"size": (17, 8), "restart_marker_blocks": 1},
    ],
    ids=str,
)
def test_common_jpeg_files_are_plain(options: dict[str, object]) -> None:
    assert is_plain_jpeg(encoded("JPEG", **options))


def exchanged(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new, 1)


ADOBE = b"Adobe\0\x64\0\0\0\0"
ODD_JPEG: dict[str, Callable[[], bytes]] = {
    "no start": lambda: b"\0" + JPEG[1:],
    "truncated": lambda: JPEG[:-2],
    "truncated in a scan": lambda: JPEG[:-100],
    "followed by more": lambda: JPEG + b"\0",
    "followed by another image": lambda: JPEG + JPEG,
    "two starts": lambda: b"\xff\xd8" + JPEG,
    "a fill byte": lambda: JPEG[:2] + b"\xff" + JPEG[2:],
    "arithmetic coding": lambda: exchanged(JPEG, b"\xff\xc0", b"\xff\xc9"),
    "lossless": lambda: exchanged(JPEG, b"\xff\xc0", b"\xff\xc3"),
    "12 bits": lambda: exchanged(JPEG, b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "no height": lambda: exchanged(JPEG, b"\xff\xc0\0\x11\x08\0\x2b", b"\xff\xc0\0\x11\x08\0\0"),
    "a height after the scan": lambda: JPEG[:-2] + b"\xff\xdc\0\x04\0\x2b" + JPEG[-2:],
    "components R, G, B": lambda: encoded("JPEG", keep_rgb=True),
    "four components": lambda: encoded("JPEG", "CMYK"),
    "Adobe's RGB": lambda: with_segment(JPEG, 0xEE, ADOBE + b"\0"),
    "a short Adobe segment": lambda: with_segment(JPEG, 0xEE, b"Adobe"),
    "sampled 4:1:0": lambda: exchanged(JPEG, b"\x01\x22\0\x02\x11", b"\x01\x42\0\x02\x11"),
    "chroma sampled more than luma": lambda: exchanged(JPEG, b"\x01\x22\0\x02\x11", b"\x01\x11\0\x02\x22"),
    "a quantization by zero": lambda: exchanged(JPEG, b"\xff\xdb\0\x43\0\x08", b"\xff\xdb\0\x43\0\0"),
    "a table of too many codes": lambda: exchanged(JPEG, b"\xff\xc4\0\x1f\0\0", b"\xff\xc4\0\x1f\0\x03"),
    "a segment that is too long": lambda: exchanged(JPEG, b"\xff\xe0\0\x10", b"\xff\xe0\xff\xff"),
    "a table after the scan": lambda: JPEG[:-2] + with_segment(JPEG, 0xDD, b"\0\1")[2:8] + JPEG[-2:],
    "a restart marker that is not declared": lambda: JPEG[:-10] + b"\xff\xd0" + JPEG[-10:],
    "a restart marker too few": lambda: exchanged(RESTARTS, b"\xff\xd1", b"\0\0"),
    "restart markers out of order": lambda: exchanged(RESTARTS, b"\xff\xd1", b"\xff\xd3"),
    "a reserved marker in the scan": lambda: JPEG[:-10] + b"\xff\x4a" + JPEG[-10:],
    "two frames": lambda: with_segment(JPEG, 0xC0, JPEG[JPEG.index(b"\xff\xc0") + 4 :][:15]),
    "two scans of a baseline frame": lambda: JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") :],
    "another restart interval in each scan": lambda: encoded("JPEG", progressive=True, restart_marker_rows=1),
    "no scan": lambda: JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9",
    "empty": lambda: b"",
    "only a start": lambda: b"\xff\xd8",
}


@pytest.mark.parametrize("name", ODD_JPEG)
def test_odd_jpeg_files_are_not_plain(name: str) -> None:
    data = ODD_JPEG[name]()
    assert data not in (JPEG, RESTARTS)
    assert is_plain_jpeg(JPEG)
    assert is_plain_jpeg(RESTARTS)
    assert not is_plain_jpeg(data)


def test_an_adobe_segment_that_states_the_usual_colours_is_plain() -> None:
    assert is_plain_jpeg(with_segment(JPEG, 0xEE, ADOBE + b"\1"))
    assert is_plain_jpeg(with_segment(JPEG, 0xEE, b"another program's"))


def test_scans_are_counted_also_in_damaged_files() -> None:
    progressive = encoded("JPEG", progressive=True)
    assert jpeg_scans(JPEG, 100) == 1
    assert jpeg_scans(progressive, 100) == progressive.count(b"\xff\xda") > 5
    assert jpeg_scans(progressive, 2) == 2
    assert jpeg_scans(progressive[: progressive.rindex(b"\xff\xda") + 20], 100) > 5
    assert jpeg_scans(exchanged(progressive, b"\xff\xe0", b"\xff\xff\xff\xe0"), 100) > 5
    # What is in metadata or after the image is no scan of it.
    assert jpeg_scans(with_segment(JPEG, 0xE1, b"\xff\xda" * 50) + b"\xff\xda" * 50, 100) == 1
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\0"):
        assert jpeg_scans(data, 100) == 0


def test_files_that_end_in_a_scan_are_recognised() -> None:
    for data in (JPEG, RESTARTS, encoded("JPEG", progressive=True), encoded("JPEG", "L")):
        assert not ends_in_a_scan(data)
        assert not ends_in_a_scan(data + b"more")
        assert ends_in_a_scan(data[:-60] + bytes(60))
        assert ends_in_a_scan(data[:-2])
    thumbnail = with_segment(JPEG, 0xE1, b"Exif\0\0" + JPEG)  # has an end of its own
    assert ends_in_a_scan(thumbnail[:-60] + bytes(60))
    # Damage elsewhere is left to the decoder.
    assert not ends_in_a_scan(exchanged(JPEG, b"\xff\xe0", b"\0\xff\xe0"))
    assert not ends_in_a_scan(b"")


GAMMA = (45455).to_bytes(4, "big")


@pytest.mark.parametrize(
    "data",
    [
        PNG,
        encoded("PNG", "L"),
        encoded("PNG", dpi=(72, 72)),
        with_chunk(with_chunk(PNG, b"gAMA", GAMMA), b"sRGB", b"\0"),
        with_chunk(PNG, b"tEXt", b"Software\0a program"),
        with_chunk(PNG, b"tIME", b"\x07\xd0\1\1\0\0\0"),
    ],
)
def test_common_png_files_are_plain(data: bytes) -> None:
    assert is_plain_png(data)


EXIF = b"\nexif\n      14\n" + b"4578696600004d4d002a00000008\n"
ODD_PNG: dict[str, Callable[[], bytes]] = {
    "transparency": lambda: encoded("PNG", transparency=(1, 2, 3)),
    "alpha": lambda: encoded("PNG", "RGBA"),
    "palette": lambda: encoded("PNG", "P"),
    "one bit": lambda: encoded("PNG", "1"),
    "16 bits": lambda: with_depth(16),
    "EXIF data": lambda: with_chunk(PNG, b"eXIf", b"MM\0\x2a\0\0\0\x08\0\0"),
    "EXIF data in a text": lambda: with_chunk(PNG, b"tEXt", b"Raw profile type exif\0" + EXIF),
    "EXIF data in a compressed text": lambda: with_chunk(
        PNG, b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF)
    ),
    "XMP data": lambda: with_chunk(PNG, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
    "a text that Pillow takes for EXIF data": lambda: with_chunk(PNG, b"tEXt", b"exif\0x"),
    "a text that Pillow takes for transparency": lambda: with_chunk(PNG, b"tEXt", b"transparency\0x"),
    "EXIF data after the pixels": lambda: PNG[:-12] + chunk(b"eXIf", b"MM\0\x2a\0\0\0\x08\0\0") + PNG[-12:],
    "an animation": lambda: with_chunk(PNG, b"acTL", b"\0\0\0\1\0\0\0\0"),
    "an unknown chunk": lambda: with_chunk(PNG, b"abcd"),
    "a palette in an RGB image": lambda: with_chunk(PNG, b"PLTE", b"\0\0\0"),
    "a chunk twice": lambda: with_chunk(with_chunk(PNG, b"gAMA", GAMMA), b"gAMA", GAMMA),
    "a chunk of another size": lambda: with_chunk(PNG, b"sRGB", b"\0\0"),
    "another gamma": lambda: with_chunk(PNG, b"gAMA", bytes(4)),
    "a colour profile": lambda: encoded("PNG", icc_profile=b"profile"),
    "a wrong checksum": lambda: PNG[:-20] + bytes([PNG[-20] ^ 1]) + PNG[-19:],
    "data apart": lambda: PNG[:-12] + chunk(b"gAMA", GAMMA) + chunk(b"IDAT") + PNG[-12:],
    "truncated": lambda: PNG[:-1],
    "no end": lambda: PNG[:-12],
    "followed by more": lambda: PNG + b"\0",
    "followed by another end": lambda: PNG + chunk(b"IEND"),
    "no data": lambda: PNG[:33] + PNG[-12:],
    "no header": lambda: PNG[:8] + PNG[33:],
    "no signature": lambda: b"\x88" + PNG[1:],
    "empty": lambda: b"",
}


def with_depth(bits: int) -> bytes:
    header = bytearray(PNG[16:29])
    header[8] = bits
    return PNG[:8] + chunk(b"IHDR", bytes(header)) + PNG[33:]


@pytest.mark.parametrize("name", ODD_PNG)
def test_odd_png_files_are_not_plain(name: str) -> None:
    assert is_plain_png(PNG)
    assert not is_plain_png(ODD_PNG[name]())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 17)])
def test_png_files_have_all_rows(mode: str, size: tuple[int, int]) -> None:
    assert fault_in_png(encoded("PNG", mode, size)) == ""


@pytest.mark.parametrize("interlaced", [False, True])
def test_missing_rows_are_noticed(interlaced: bool) -> None:
    """The compressed data of 5x6 gray pixels: rows of a byte for the filter and of the pixels' bytes."""
    passes = [6] * 6
    if interlaced:  # the columns of each row of the passes: 1x1, 1x1, 2x1, 1x2, 3x1, 2x3, 5x3
        passes = [2, 2, 3, 2, 2, 4, 3, 3, 3, 6, 6, 6]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 8, 0, 0, 0, int(interlaced)))

    def png(size: int) -> bytes:
        return PNG[:8] + header + chunk(b"IDAT", zlib.compress(b"\0" * size)) + chunk(b"IEND")

    assert np.asarray(Image.open(io.BytesIO(png(sum(passes))))).shape == (6, 5)
    assert fault_in_png(png(sum(passes))) == ""
    assert fault_in_png(png(sum(passes) - 1)) == "the image ends before its last row"
    assert fault_in_png(png(sum(passes) + 1000)) == ""
    assert fault_in_png(png(sum(passes))[:-12]) == ""  # everything but the end chunk
    assert fault_in_png(png(sum(passes))[:-17] + bytes(17)) == "the image data are damaged"
