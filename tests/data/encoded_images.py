"""Encode small image files of every kind, also of parts that contradict each other.

Provides the parts of PNG and JPEG files, so that a file can be put together by hand.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

SIZE = (50, 40)
"""(width, height) of the images. Their last blocks are partly filled, where decoders of JPEGs can differ."""
WHOLE_BLOCKS = (64, 32)
"""A (width, height) without partly filled blocks for every subsampling that ``resampled`` produces."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""The passes of interlaced PNGs: first row and column, and the steps between rows and between columns."""
Chunks = list[tuple[bytes, bytes]]


def pixels(channels: int = 3, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """Return a noisy gradient of ``size`` as [H, W, channels]. It has no symmetry that could hide a turn."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    planes = [128 + 70 * np.sin(x / (6 + 5 * c) + y / (13 - 3 * c)) for c in range(channels)]
    noise = rng.normal(0, 9, (*y.shape, channels))
    return (np.stack(planes, -1) + noise).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return ``image`` encoded by Pillow in the format ``kind``."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG file, with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_chunks(data: bytes) -> Chunks:
    """Return the (name, data) of the chunks of the PNG file ``data``, up to the first incomplete one."""
    chunks, start = [], len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, start)
        if start + 12 + size > len(data):
            break
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += 12 + size
    return chunks


def png_of(chunks: Chunks) -> bytes:
    """Return the PNG file with these (name, data) chunks."""
    return PNG_SIGNATURE + b"".join(png_chunk(name, data) for name, data in chunks)


def png_with(data: bytes, name: bytes, payload: bytes, *, after_pixels: bool = False) -> bytes:
    """Return the PNG file ``data`` with one more chunk, before its pixels or after them."""
    chunks = png_chunks(data)
    place = len(chunks) - 1 if after_pixels else [chunk[0] for chunk in chunks].index(b"IDAT")
    return png_of([*chunks[:place], (name, payload), *chunks[place:]])


def png_by_hand(samples: NDArray[Any], colour: int, *, interlaced: bool = False) -> bytes:
    """Return a PNG of ``samples`` [H, W, C], big-endian uint8 or uint16, with this colour type."""
    rows = []
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows += [b"\0" + row.tobytes() for row in samples[top::down, left::right] if row.size]
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, samples.itemsize * 8, colour, 0, 0, int(interlaced))
    return png_of([(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")])


def jpeg_segments(data: bytes) -> list[bytes]:
    """Split the JPEG file ``data`` before each marker; scans stay with their SOS marker.

    What follows a marker without a valid length is left whole.
    """
    segments, start = [data[:2]], 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if data[start + 1] == 0xDA:
            while end + 1 < len(data) and not (data[end] == 0xFF and not _in_scan(data[end + 1])):
                end += 1
        segments.append(data[start:end])
        start = end
    return [*segments, data[start:]]


def _in_scan(code: int) -> bool:
    """Return whether 0xFF followed by ``code`` is part of a scan: an escaped 0xFF or a restart marker."""
    return code == 0 or 0xD0 <= code <= 0xD7


def jpeg_with(data: bytes, marker: int, payload: bytes, place: int = 1) -> bytes:
    """Return the JPEG file ``data`` with one more segment before the segment number ``place``."""
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload
    segments = jpeg_segments(data)
    return b"".join([*segments[:place], segment, *segments[place:]])


def resampled(data: bytes, factors: int) -> bytes:
    """Return the JPEG file ``data`` with other sampling ``factors`` of its first component, such as 0x41.

    With the same product of the factors (and the same number of blocks, see WHOLE_BLOCKS), the file stays
    valid, though its blocks are rearranged.
    """
    start = next(n for n in range(len(data)) if data[n] == 0xFF and data[n + 1] in (0xC0, 0xC1, 0xC2))
    return data[: start + 11] + bytes([factors]) + data[start + 12 :]


def exif(orientation: int) -> bytes:
    """Return EXIF data that contains this orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def _jpegs() -> dict[str, bytes]:
    rgb, gray = Image.fromarray(pixels()), Image.fromarray(pixels(1)[:, :, 0])
    whole_blocks = Image.fromarray(pixels(3, WHOLE_BLOCKS))
    files = {
        "420": saved(rgb, "JPEG", subsampling=2),
        "422": saved(rgb, "JPEG", subsampling=1),
        "444": saved(rgb, "JPEG", subsampling=0),
        "optimized": saved(rgb, "JPEG", optimize=True, quality=90),
        "low": saved(rgb, "JPEG", quality=5),
        "progressive": saved(rgb, "JPEG", progressive=True),
        "progressive444": saved(rgb, "JPEG", progressive=True, subsampling=0),
        "restart_rows": saved(rgb, "JPEG", restart_marker_rows=1),
        "restart_blocks": saved(rgb, "JPEG", restart_marker_blocks=3, progressive=True),
        "gray": saved(gray, "JPEG"),
        "gray_progressive": saved(gray, "JPEG", progressive=True),
        "cmyk": saved(Image.fromarray(pixels(4), "CMYK"), "JPEG"),
        "exif": saved(rgb, "JPEG", exif=exif(6)),
        "exif_upright": saved(rgb, "JPEG", exif=exif(1)),
        "icc": saved(rgb, "JPEG", icc_profile=bytes(range(256)), comment=b"a comment"),
    }
    files["411"] = resampled(saved(whole_blocks, "JPEG", subsampling=2), 0x41)
    files["440"] = resampled(saved(whole_blocks, "JPEG", subsampling=1), 0x12)
    files["mpo"] = saved(rgb, "MPO", save_all=True, append_images=[rgb])
    return {f"{name}.jpg": data for name, data in files.items()}


def _pngs() -> dict[str, bytes]:
    values = pixels(4)
    rgb, gray = Image.fromarray(values[:, :, :3]), Image.fromarray(values[:, :, 0])
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a program")
    text.add_text("Comment", "compressed" * 9, zip=True)
    text.add_itxt("Title", "international")
    deep = values.astype(">u2") * 257
    turned = rgb.transpose(Image.Transpose.ROTATE_180)
    files = {
        "rgb": saved(rgb, "PNG"),
        "gray": saved(gray, "PNG"),
        "palette": saved(rgb.quantize(40), "PNG"),
        "palette4": saved(rgb.quantize(13), "PNG", transparency=2),
        "one_bit": saved(gray.convert("1"), "PNG"),
        "gray16": png_by_hand(deep[:, :, :1], 0),
        "rgb16": png_by_hand(deep[:, :, :3], 2),
        "rgb_interlaced": png_by_hand(values[:, :, :3], 2, interlaced=True),
        "gray_interlaced": png_by_hand(values[:, :, :1], 0, interlaced=True),
        "rgba": saved(Image.fromarray(values), "PNG"),
        "gray_alpha": saved(Image.fromarray(values).convert("LA"), "PNG"),
        "transparent": saved(rgb, "PNG", transparency=(1, 2, 3)),
        "exif": saved(rgb, "PNG", exif=exif(6)),
        "text": saved(rgb, "PNG", pnginfo=text),
        "icc": saved(rgb, "PNG", icc_profile=bytes(range(256)), dpi=(72, 72)),
        "animated": saved(rgb, "PNG", save_all=True, append_images=[turned]),
    }
    files["split"] = png_of(_split_pixels(png_chunks(files["rgb"])))
    return {f"{name}.png": data for name, data in files.items()}


def _split_pixels(chunks: Chunks) -> Chunks:
    """Split every IDAT chunk into pieces, with an empty one among them."""
    split: Chunks = []
    for name, data in chunks:
        if name == b"IDAT":
            split += [(name, piece) for piece in (data[:99], b"", data[99:1000], data[1000:])]
        else:
            split.append((name, data))
    return split


def _others() -> dict[str, bytes]:
    rgb, gray = Image.fromarray(pixels()), Image.fromarray(pixels(1)[:, :, 0])
    files = {
        "rgb.bmp": saved(rgb, "BMP"),
        "palette.bmp": saved(rgb.quantize(40), "BMP"),
        "rgb.ppm": saved(rgb, "PPM"),
        "gray.pgm": saved(gray, "PPM"),
        "deep.pgm": saved(Image.fromarray(pixels(1)[:, :, 0].astype(np.uint16) * 257), "PPM"),
        "raw.tif": saved(rgb, "TIFF"),
        "gray16.tif": saved(Image.fromarray(pixels(1)[:, :, 0].astype(np.uint16) * 257), "TIFF"),
        "rgb.gif": saved(rgb, "GIF"),
        "animated.gif": saved(rgb, "GIF", save_all=True, append_images=[gray.convert("RGB")]),
        "rgb.tga": saved(rgb, "TGA"),
        "rle.tga": saved(rgb, "TGA", compression="tga_rle"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        files[f"{compression}.tif"] = saved(rgb, "TIFF", compression=compression)
    return files | _optional(rgb)


def _optional(rgb: Image.Image) -> dict[str, bytes]:
    """Return images in the formats that some builds of Pillow cannot write."""
    Image.init()
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "lossy.webp": ("WEBP", {}),
        "lossless.webp": ("WEBP", {"lossless": True}),
        "exif.webp": ("WEBP", {"exif": exif(6)}),
        "rgb.avif": ("AVIF", {"speed": 10}),
        "rgb.jp2": ("JPEG2000", {}),
    }
    return {name: saved(rgb, kind, **opts) for name, (kind, opts) in wanted.items() if kind in Image.SAVE}


@cache
def originals() -> dict[str, bytes]:
    """Return one whole image of every kind, by a file name such as progressive.jpg."""
    return _jpegs() | _pngs() | _others()


def _jpeg_puzzles() -> dict[str, bytes]:
    base, progressive = originals()["444.jpg"], originals()["progressive.jpg"]
    plain = base.replace(jpeg_segments(base)[1], b"")  # without JFIF
    middle = len(base) - 150  # within the scan
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    adobe = b"Adobe\0\x64\0\0\0\0"
    files = {
        "adobe_rgb": jpeg_with(plain, 0xEE, adobe + b"\0"),
        "adobe_transform2": jpeg_with(plain, 0xEE, adobe + b"\2"),
        "components_rgb": plain.replace(b"\3\1\x11\0\2\x11\1\3", b"\3R\x11\0G\x11\1B").replace(
            b"\3\1\0\2\x11\3", b"\3R\0G\x11B"
        ),
        "xmp": jpeg_with(base, 0xE1, xmp),
        "exif_twice": jpeg_with(jpeg_with(base, 0xE1, exif(1)), 0xE1, exif(6)),
        "exif_broken": jpeg_with(base, 0xE1, exif(6)[:-9]),
        "exif_after_scan": base[:-2] + jpeg_with(b"\xff\xd8", 0xE1, exif(6))[2:] + base[-2:],
        "photoshop_cut": jpeg_with(base, 0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        "height_after_scan": base[:-2] + bytes.fromhex("ffdc00040020") + base[-2:],
        "progressive_as_baseline": progressive.replace(b"\xff\xc2", b"\xff\xc0"),
        "junk_between": base.replace(b"\xff\xdb", b"junk\xff\xdb", 1),
        "fill_bytes": base.replace(b"\xff\xdb", b"\xff\xff\xdb", 1),
        "another_image_after": base + originals()["gray.jpg"],
        "no_end": base[:-2],
    }
    for code in (0x14, 0xC0, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xF0):
        files[f"marker_{code:02x}_in_scan"] = base[:middle] + bytes([0xFF, code]) + base[middle:]
    return {f"{name}.jpg": data for name, data in files.items()}


def _png_puzzles() -> dict[str, bytes]:
    base, tags = originals()["rgb.png"], exif(6)
    profile = b"\nexif\n%8d\n%s\n" % (len(tags), tags.hex().encode())
    chunks = {
        "profile_text": (b"tEXt", b"Raw profile type exif\0" + profile),
        "profile_ztxt": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)),
        "profile_itxt": (b"iTXt", b"Raw profile type exif\0\0\0\0\0" + profile),
        "xmp": (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="6"'),
        "exif": (b"eXIf", tags[6:]),
        "exif_broken": (b"eXIf", b"XXXX"),
        "transparent": (b"tRNS", struct.pack(">HHH", *pixels()[0, 0].tolist())),
        "gamma_short": (b"gAMA", b"\0\0"),
        "profile_method": (b"iCCP", b"name\0\1" + zlib.compress(b"profile")),
        "text_method": (b"zTXt", b"Comment\0\1" + zlib.compress(b"comment")),
        "text_bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21))),
        "part_of_frame": (b"fcTL", struct.pack(">IIIIIHHBB", 0, 25, 20, 0, 0, 1, 1, 0, 0)),
        "frame_data": (b"fdAT", bytes(4)),
        "two_frames": (b"acTL", struct.pack(">II", 2, 0)),
        "palette": (b"PLTE", bytes(30)),
        "private": (b"prVt", b"data"),
        "critical": (b"CRIT", b"data"),
    }
    # Pillow stores texts under their keywords, beside what it finds in other chunks.
    for key in (b"exif", b"xmp", b"XML:com.adobe.xmp", b"transparency", b"interlace", b"bbox", b"gamma"):
        chunks[f"keyword_{key.decode().replace(':', '_')}"] = b"tEXt", key + b"\0" + tags
    files = {}
    for name, (kind, data) in chunks.items():
        files[name] = png_with(base, kind, data)
        files[f"{name}_after"] = png_with(base, kind, data, after_pixels=True)
    return {f"{name}.png": data for name, data in (files | _damaged_pngs(base)).items()}


def _damaged_pngs(base: bytes) -> dict[str, bytes]:
    header, (_, packed), end = png_chunks(base)
    raw = zlib.decompress(packed)
    bodies = {
        "rows_missing": zlib.compress(raw[: len(raw) // 40 * 30]),
        "row_cut": zlib.compress(raw[:-9]),
        "rows_more": zlib.compress(raw + raw),
        "no_checksum": packed[:-4],
        "wrong_checksum": packed[:-1] + bytes([packed[-1] ^ 1]),
        "unknown_filter": zlib.compress(b"\7" + raw[1:]),
        "no_pixels": b"",
    }
    files = {name: png_of([header, (b"IDAT", body), end]) for name, body in bodies.items()}
    files["wrong_crc_pixels"] = base[:-13] + bytes([base[-13] ^ 1]) + base[-12:]
    files["wrong_crc_text"] = png_with(base, b"tEXt", b"Title\0text").replace(b"Title", b"title")
    return files | {"no_end": base[:-12], "half_end": base[:-4], "data_after": base + base}


@cache
def puzzles() -> dict[str, bytes]:
    """Return files by name whose parts contradict each other, so that readers could differ over them.

    The kinds were found by comparing what Pillow interprets with what other decoders do.
    """
    files = _jpeg_puzzles() | _png_puzzles()
    if "exif.webp" in originals():  # has a header with the size of a canvas, here of 2^48 pixels
        webp = originals()["exif.webp"]
        files["canvas.webp"] = webp[:24] + b"\xff" * 6 + webp[30:]
    return {f"puzzle-{name}": data for name, data in files.items()}
