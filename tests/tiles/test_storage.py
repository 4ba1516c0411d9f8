from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.errors import UserError
from fastcyclegan.tiles.spans import Window
from fastcyclegan.tiles.storage import FileRows, Rows, TensorRows

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
WHOLE: Window = ((0, 13), (0, 9))
PARTS: list[Window] = [((0, 5), (0, 9)), ((5, 13), (0, 4)), ((5, 6), (4, 9)), ((6, 13), (4, 9))]
OPEN = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not OPEN.exists(), reason="needs the list of open files of Linux")


@pytest.fixture(params=["device", "disk"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def rows(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Rows:
    shape = 13, 9, 5
    return FileRows(shape, dtype, folder) if kind == "disk" else TensorRows(shape, dtype, torch.device("cpu"))


def part(x: Tensor, window: Window) -> Tensor:
    return x[slice(*window[0]), slice(*window[1])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_come_back_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored, x = rows(kind, tmp_path, dtype), torch.randn(13, 9, 5).to(dtype)
    # Pixels of a view, in the layout in which a map comes from a convolution.
    planes = x.permute(2, 0, 1).contiguous()
    for window in PARTS:
        stored.write(window, part(planes.permute(1, 2, 0), window))
    for window in (WHOLE, *PARTS, ((2, 7), (3, 5)), ((12, 13), (8, 9))):
        found = stored.read(window)
        assert found.dtype == dtype
        assert torch.equal(found, part(x, window))
    stored.write(((3, 6), (2, 4)), torch.full((3, 2, 5), 7.0, dtype=dtype))
    x[3:6, 2:4] = 7.0
    assert torch.equal(stored.read(WHOLE), x)
    stored.close()


def test_pixels_of_another_dtype_are_converted(kind: str, tmp_path: Path) -> None:
    stored, x = rows(kind, tmp_path, torch.float32), torch.randn(13, 9, 5, dtype=torch.float64)
    stored.write(WHOLE, x)
    assert torch.equal(stored.read(WHOLE), x.float())
    stored.close()


def open_in(folder: Path) -> list[Path]:
    """Return the open files of this process that are, or were, in ``folder``."""
    entries = [entry for entry in OPEN.iterdir() if entry.is_symlink()]
    return [entry for entry in entries if str(entry.readlink()).startswith(str(folder))]


@needs_proc
def test_nothing_can_find_the_file(tmp_path: Path) -> None:
    stored = rows("disk", tmp_path)
    assert not list(tmp_path.iterdir())
    (file,) = open_in(tmp_path)
    # All of its size is reserved at once.
    assert file.stat().st_size == 13 * 9 * 5 * 4
    assert file.stat().st_blocks * 512 >= 13 * 9 * 5 * 4
    stored.write(WHOLE, torch.randn(13, 9, 5))
    assert not list(tmp_path.iterdir())
    stored.close()
    stored.close()
    assert not open_in(tmp_path)


@needs_proc
def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    stored = rows("disk", tmp_path)
    os.truncate(open_in(tmp_path)[0], 13 * 9 * 5 * 4 - 1)
    stored.read(((0, 12), (0, 9)))
    with pytest.raises(UserError, match="the file has become shorter") as error:
        stored.read(((12, 13), (8, 9)))
    assert is_one_line(str(error.value), tmp_path)
    stored.close()


def failing(*args: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_one_line(message: str, folder: Path) -> bool:
    return "\n" not in message and "--tile_storage disk" in message and str(folder) in message


def test_a_full_disk_is_noticed_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing)
    with pytest.raises(UserError, match="No space left on device") as error:
        rows("disk", tmp_path)
    assert is_one_line(str(error.value), tmp_path)
    assert "GiB free" in str(error.value)
    if OPEN.exists():
        assert not open_in(tmp_path)


def test_a_disk_that_fails_later_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = rows("disk", tmp_path)
    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(UserError, match="No space left on device") as error:
        stored.write(WHOLE, torch.randn(13, 9, 5))
    assert is_one_line(str(error.value), tmp_path)
    stored.close()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory") as error:
        rows("disk", tmp_path / "gone")
    assert is_one_line(str(error.value), tmp_path / "gone")


def test_short_reads_and_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may transfer fewer bytes than asked for."""
    preadv, pwrite = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda file, view, at: pwrite(file, view[:11], at))
    stored, x = rows("disk", tmp_path), torch.randn(13, 9, 5)
    stored.write(WHOLE, x)
    assert torch.equal(stored.read(WHOLE), x)
    stored.close()


def test_a_tensor_is_gone_after_it_is_closed() -> None:
    stored = TensorRows((4, 4, 2), torch.float32, torch.device("cpu"))
    stored.close()
    with pytest.raises(AssertionError):
        stored.read(((0, 1), (0, 1)))
