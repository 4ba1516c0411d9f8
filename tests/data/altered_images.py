"""Alter small image files of every kind at random, in ways that break files or confuse readers.

The alterations are drawn from a seed, so a failure can be repeated. They are those of real life (files that
were cut off, partly written, damaged, or followed by other data) and those that reach rare code in decoders
(markers, chunks and sizes that contradict each other).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.data.encoded_images import jpeg_segments, originals, png_chunks, png_of

BOUNDARIES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 2**31, 2**32 - 1)
"""Values at which integer fields overflow, change sign or lose their meaning."""
SIDES = (0, 1, 2, 7, 8, 16, 31, 33, 48, 63, 65, 80, 128)
"""Widths and heights to write into headers."""
Alteration = Callable[[np.random.Generator, bytes], bytes]


def _place(rng: np.random.Generator, data: bytes, room: int = 1) -> int:
    """Draw an offset in ``data``: in half of the cases one of the first 200, where the headers are."""
    end = max(len(data) - room, 0)
    if rng.random() < 0.5:
        end = min(end, 200)
    return int(rng.integers(0, end + 1))


def _flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 8]))):
        changed[_place(rng, data)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    size = int(rng.choice([1, 2, 4]))
    value = int(rng.choice(BOUNDARIES)) % 256**size
    order: Any = rng.choice(["big", "little"])
    place = _place(rng, data, size)
    return data[:place] + value.to_bytes(size, order) + data[place + size :]


def _truncate(rng: np.random.Generator, data: bytes) -> bytes:
    if rng.random() < 0.3:
        return data[: len(data) - int(rng.integers(1, 20))]
    return data[: int(rng.integers(0, len(data)))]


def _zero_tail(rng: np.random.Generator, data: bytes) -> bytes:
    """A file that was only partly written when the machine stopped."""
    kept = int(rng.integers(0, len(data)))
    return data[:kept] + bytes(len(data) - kept)


def _delete(rng: np.random.Generator, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + data[place + int(rng.choice([1, 2, 4, 16, 300])) :]


def _insert(rng: np.random.Generator, data: bytes) -> bytes:
    place = _place(rng, data)
    return data[:place] + rng.bytes(int(rng.choice([1, 2, 4, 16, 300]))) + data[place:]


def _duplicate(rng: np.random.Generator, data: bytes) -> bytes:
    start = _place(rng, data)
    end = start + int(rng.choice([1, 4, 16, 100, 600]))
    return data[:end] + data[start:]


def _swap(rng: np.random.Generator, data: bytes) -> bytes:
    size = int(rng.choice([1, 2, 4, 16, 100]))
    first, second = sorted(_place(rng, data, 2 * size) for _ in range(2))
    second = max(second, first + size)
    parts = [data[first : first + size], data[first + size : second], data[second : second + size]]
    return data[:first] + b"".join(reversed(parts)) + data[second + size :]


def _append(rng: np.random.Generator, data: bytes) -> bytes:
    """Data after the end: zeros, noise, an end of another file, or a whole file."""
    tails = [bytes(100), rng.bytes(50), b"\xff\xd9", b"\n", b"\0\0\0\0IEND\xaeB`\x82", data]
    return data + tails[int(rng.integers(len(tails)))]


def _insert_marker(rng: np.random.Generator, data: bytes) -> bytes:
    """A marker in the wrong place of a JPEG: RST, SOI, EOI, SOS, DNL, fill bytes, an unknown one."""
    markers = "ffd0 ffd3 ffd7 ffd8 ffd9 ffda ffdc00040020 ffdc00040028 ff ff01 ff00".split()
    place = int(rng.integers(2, len(data)))
    return data[:place] + bytes.fromhex(str(rng.choice(markers))) + data[place:]


def _rearrange_segments(rng: np.random.Generator, data: bytes) -> bytes:
    """Delete, duplicate or swap whole segments of a JPEG."""
    return b"".join(_rearranged(rng, jpeg_segments(data)))


def _rearranged(rng: np.random.Generator, parts: list[Any]) -> list[Any]:
    if not parts:  # an earlier alteration destroyed the first length field
        return parts
    first, second = (int(rng.integers(len(parts))) for _ in range(2))
    match int(rng.integers(3)):
        case 0:
            return parts[:first] + parts[first + 1 :]
        case 1:
            return [*parts[:second], parts[first], *parts[second:]]
        case _:
            parts[first], parts[second] = parts[second], parts[first]
            return parts


def _alter_segment(rng: np.random.Generator, data: bytes) -> bytes:
    """Change one byte among those that describe a JPEG: tables, sizes, components, parameters of scans."""
    segments = jpeg_segments(data)
    number = int(rng.integers(len(segments)))
    segment = bytearray(segments[number])
    if len(segment) > 4:
        place = int(rng.integers(1, min(len(segment), 20)))
        segment[place] = int(rng.choice([0, 1, 2, 3, 4, 0x11, 0x12, 0x21, 0x22, 255]))
    return b"".join([*segments[:number], bytes(segment), *segments[number + 1 :]])


def _resize_jpeg(rng: np.random.Generator, data: bytes) -> bytes:
    """Write another height or width into the header of a JPEG."""
    segments = jpeg_segments(data)
    for number, segment in enumerate(segments):
        if segment[1:2] in (b"\xc0", b"\xc1", b"\xc2") and len(segment) > 9:
            place = int(rng.choice([5, 7]))
            side = struct.pack(">H", int(rng.choice(SIDES)))
            segments[number] = segment[:place] + side + segment[place + 2 :]
    return b"".join(segments)


def _rearrange_chunks(rng: np.random.Generator, data: bytes) -> bytes:
    """Delete, duplicate or swap whole chunks of a PNG."""
    return png_of(_rearranged(rng, png_chunks(data)))


def _alter_chunk(rng: np.random.Generator, data: bytes) -> bytes:
    """Change the data of one chunk of a PNG, and correct its checksum."""
    chunks = png_chunks(data)
    if chunks:
        number = int(rng.integers(len(chunks)))
        name, payload = chunks[number]
        change = (_flip_bits, _overwrite, _truncate, _insert)[int(rng.integers(4))]
        if len(payload) > 4:
            chunks[number] = name, change(rng, payload)
    return png_of(chunks)


def _alter_pixels(rng: np.random.Generator, data: bytes) -> bytes:
    """Change the filtered bytes of a PNG under its compression: unknown filters, too few or many bytes."""
    chunks = png_chunks(data)
    found = [number for number, (name, _) in enumerate(chunks) if name == b"IDAT"]
    try:
        raw = zlib.decompress(b"".join(chunks[number][1] for number in found))
    except zlib.error:
        return data
    change = (_flip_bits, _overwrite, _truncate, _append, _delete)[int(rng.integers(5))]
    if raw:
        chunks[found[0] : found[-1] + 1] = [(b"IDAT", zlib.compress(change(rng, raw)))]
    return png_of(chunks)


def _resize_png(rng: np.random.Generator, data: bytes) -> bytes:
    """Write another width, height, depth, colour type or interlacing into the header of a PNG."""
    chunks = png_chunks(data)
    if chunks and len(chunks[0][1]) == 13:
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        place = int(rng.choice([0, 0, 1, 1, 2, 3, 6]))
        values = {0: SIDES, 1: SIDES, 2: (1, 2, 4, 8, 16), 3: (0, 2, 3, 4, 6), 6: (0, 1)}
        fields[place] = int(rng.choice(values[place]))
        chunks[0] = chunks[0][0], struct.pack(">IIBBBBB", *fields)
    return png_of(chunks)


ANY: dict[str, Alteration] = {
    "bits": _flip_bits,
    "overwritten": _overwrite,
    "truncated": _truncate,
    "zeros": _zero_tail,
    "deleted": _delete,
    "inserted": _insert,
    "duplicated": _duplicate,
    "swapped": _swap,
    "appended": _append,
}
JPEG: dict[str, Alteration] = {
    "marker": _insert_marker,
    "segments": _rearrange_segments,
    "segment": _alter_segment,
    "size": _resize_jpeg,
}
PNG: dict[str, Alteration] = {
    "chunks": _rearrange_chunks,
    "chunk": _alter_chunk,
    "pixels": _alter_pixels,
    "size": _resize_png,
}


def altered(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of ``count`` files, of which a few are unaltered.

    A name gives the number, the original and what was done to it: 00017-gray-truncated.png. File n of a seed
    is the same for every ``count``, with the same version of Pillow.
    """
    for number in range(count):
        yield _file(np.random.default_rng([seed, number]), number)


def _file(rng: np.random.Generator, number: int) -> tuple[str, bytes]:
    names = list(originals())
    name = names[int(rng.integers(len(names)))]
    stem, suffix = name.split(".")
    data, done = originals()[name], ["whole"]
    kinds = ANY | {"jpg": JPEG, "png": PNG}.get(suffix, {})
    for _ in range(int(rng.choice([0, 1, 1, 1, 1, 1, 1, 2, 3]))):
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        if len(data) > 20:  # the alterations need something to alter
            data = kinds[kind](rng, data)
            done.append(kind)
    return f"{number:05d}-{stem}-{'-'.join(done[1:] if done[1:] else done)}.{suffix}", data
