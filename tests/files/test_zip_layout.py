"""Archives that readers could read differently are rejected before they are loaded."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.files.zip_layout import check_layout
from fastcyclegan.tensor_files import load_tensors

END, END_64 = 22, 22 + 20 + 56


def saved(file: Path, value: float) -> bytes:
    torch.save({"w": torch.full((8,), value)}, file)
    return file.read_bytes()


def directory(data: bytes) -> int:
    """Return the offset of the directory in the archive ``data``."""
    return int(struct.unpack_from("<L", data, len(data) - 6)[0])


def zip_of(file: Path, parts: list[tuple[str, bytes]]) -> bytes:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return file.read_bytes()


def parts_of(file: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("other", ["x/data/0", "x/DATA/0", "y/data/0"], ids=["same", "case", "folder"])
@pytest.mark.parametrize("is_first", [True, False])
def test_two_parts_of_one_name_are_rejected(tmp_path: Path, other: str, is_first: bool) -> None:
    """Otherwise, either can be loaded: torch ignores case, and Python takes the last one of a name."""
    file = tmp_path / "x.pth"
    saved(file, 1.0)
    parts = parts_of(file)
    parts.insert(0 if is_first else len(parts), (other, bytes(32)))
    zip_of(file, parts)
    with pytest.raises(UserError, match=r"x.pth: cannot be loaded: .*two of its parts have the same name"):
        load_tensors(file)


def two_archives(a: bytes, b: bytes) -> bytes:
    """Return an archive that is ``a`` for who goes by offsets, and ``b`` for who goes by lengths."""
    entries, where = b[directory(b) : -END_64], directory(a)
    end = bytearray(a[-END:])
    count = struct.unpack_from("<H", b, len(b) - 12)[0]
    struct.pack_into("<2H2L", end, 8, count, count, len(entries), where)
    return a[:-END_64] + b[: directory(b)] + entries + bytes(end)


def test_an_archive_with_two_directories_is_rejected(tmp_path: Path) -> None:
    a, b = saved(tmp_path / "x.pth", 1.0), saved(tmp_path / "x.pth", 2.0)
    (tmp_path / "x.pth").write_bytes(two_archives(a, b))
    with pytest.raises(UserError, match=r"cannot be loaded: .*it has two directories"):
        load_tensors(tmp_path / "x.pth")


def at(offset: int, content: bytes) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        place = offset + len(data) if offset < 0 else offset
        assert data[place : place + len(content)] != content
        data[place : place + len(content)] = content

    return change


@pytest.mark.parametrize(("change", "message"), [
    (at(-14, b"\x02"), "two directories"),  # the number of entries, which the wide field contradicts
    (at(-22 - 12, b"\x01"), "two directories"),  # the offset of the wide end
    (at(-98 + 24, b"\x02"), "two directories"),  # the number of entries in the wide end
    (at(-98 + 48, b"\x01"), "two directories"),  # the offset of the directory in the wide end
    (lambda data: data.extend(b"more"), "bytes after its directory"),
    (at(6, b"\x00"), "the header of a part contradicts"),  # flags: now the sizes must be here
    (at(8, b"\x08"), "the header of a part contradicts"),  # compression
    (at(30, b"Y"), "the header of a part contradicts"),  # name
])  # fmt: skip
def test_contradictions_are_rejected(
    tmp_path: Path, change: Callable[[bytearray], None], message: str
) -> None:
    data = bytearray(saved(tmp_path / "x.pth", 1.0))
    change(data)
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match=message):
        check_layout(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x.pth: cannot be loaded: .*damaged") as error:
        load_tensors(tmp_path / "x.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", [18, 22], ids=["packed", "size"])
def test_sizes_of_a_header_that_differ_are_rejected(tmp_path: Path, field: int) -> None:
    saved(tmp_path / "x.pth", 1.0)
    data = bytearray(zip_of(tmp_path / "x.pth", parts_of(tmp_path / "x.pth")))
    data[field] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="the header of a part contradicts"):
        check_layout(tmp_path / "x.pth")


@pytest.mark.parametrize("size", [8, 9, 10_000], ids=["next header", "next part", "directory"])
def test_overlapping_parts_are_rejected(tmp_path: Path, size: int) -> None:
    file = tmp_path / "x.zip"
    data = bytearray(zip_of(file, [("x/a", b"1234567"), ("x/b", b"1234567")]))
    for place in (18, directory(data) + 20):  # in the header and in the directory
        struct.pack_into("<2L", data, place, size, size)
    file.write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="its parts overlap"):
        check_layout(file)


def test_archives_of_torch_and_python_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    saved(file, 3.0)
    for data in (file.read_bytes(), zip_of(tmp_path / "y.pth", parts_of(file))):
        file.write_bytes(data)
        assert load_tensors(file)["w"].tolist() == [3.0] * 8
