"""Check that all readers of a zip archive find the same parts in it.

An archive states most things twice, and readers differ in which statement they use: Python's zipfile, which
verifies the checksums, finds the directory by its length, counts its entries and takes the last one of a
name. torch goes by the directory's offset and its number of entries, ignores case, and takes any one of a
name. So an archive in which the statements differ could be checked as one and loaded as another.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_HEADER = struct.Struct("<4s5H3L2H")
# Flags of a part: its sizes follow the data instead of preceding them, and its name is in UTF-8.
_SIZES_FOLLOW, _UTF_8 = 0x8, 0x800
# The largest values of narrow fields. They mean that a wide field contains the number.
_WIDE_16, _WIDE_32 = 0xFFFF, 0xFFFFFFFF


def check_layout(path: Path) -> None:
    """Raise BadZipFile if readers could find different parts in the archive at ``path``.

    The parts must be in one folder, as torch writes them. The message completes a sentence about the archive.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        directory = _directory(file, len(parts))
        _check_names(parts)
        _check_headers(file, parts, directory)


def _directory(file: IO[bytes], count: int) -> int:
    """Return the offset of the directory, which must end where its own end is described."""
    end = file.seek(0, 2) - _END.size
    mark, disk, first, here, total, length, start, comment = _read(file, _END, end)
    if mark != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("there are bytes after its directory")
    narrow = (disk, first, here, total, length, start)
    wide = narrow
    locator = end - _LOCATOR.size
    if locator >= _END_64.size:
        mark, disk, place, _ = _read(file, _LOCATOR, locator)
        if mark == b"PK\x06\x07":
            end = locator - _END_64.size
            mark, *_, disk, first, here, total, length, start = _read(file, _END_64, end)
            wide = (disk, first, here, total, length, start)
            if mark != b"PK\x06\x06" or place != end:
                raise zipfile.BadZipFile("it has two directories")
    is_one = all(a in (b, _WIDE_16, _WIDE_32) for a, b in zip(narrow, wide, strict=True))
    *disks, here, total, length, start = wide
    if not is_one or any(disks) or start + length != end or (here, total) != (count, count):
        raise zipfile.BadZipFile("it has two directories")
    return int(start)


def _check_names(parts: Sequence[zipfile.ZipInfo]) -> None:
    """Raise BadZipFile if two parts have one name, apart from the folder of all parts, and from case."""
    names = set()
    for part in parts:
        folder, _, name = part.filename.partition("/")
        if not name:
            name = folder
        names.add(name.lower())
        if part.filename != part.orig_filename:
            raise zipfile.BadZipFile("the name of a part contains a zero byte")
    if len(names) < len(parts):
        raise zipfile.BadZipFile("two of its parts have the same name")


def _check_headers(file: IO[bytes], parts: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Raise BadZipFile if a part's header contradicts the directory, or if parts share bytes."""
    end = 0
    for part in sorted(parts, key=lambda part: part.header_offset):
        if part.header_offset < end:
            raise zipfile.BadZipFile("its parts overlap")
        _, _, flags, method, _, _, _, packed, size, length, extra = _read(file, _HEADER, part.header_offset)
        name = file.read(length)
        expected = part.orig_filename.encode("utf-8" if flags & _UTF_8 else "cp437")
        is_same = (name, flags, method) == (expected, part.flag_bits, part.compress_type)
        if not flags & _SIZES_FOLLOW:
            is_same &= packed in (part.compress_size, _WIDE_32) and size in (part.file_size, _WIDE_32)
        if not is_same:
            raise zipfile.BadZipFile("the header of a part contradicts the directory")
        end = part.header_offset + _HEADER.size + length + extra + part.compress_size
    if end > directory:
        raise zipfile.BadZipFile("its parts overlap")


def _read(file: IO[bytes], record: struct.Struct, place: int) -> tuple[Any, ...]:
    """Return the fields of the ``record`` at offset ``place``. Raises BadZipFile if it is not all there."""
    file.seek(max(place, 0))
    data = file.read(record.size)
    if place < 0 or len(data) < record.size:
        raise zipfile.BadZipFile("it is incomplete")
    return record.unpack(data)
