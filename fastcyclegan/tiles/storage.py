"""Memory for maps: on a device or the host, or in a file that nothing can find.

The file has no name, so it is gone when the process ends, however that happens. Its size is reserved at once,
so a full disk is noticed before work begins. Maps in it are read and written row by row, and not mapped into
memory, where a failing disk would end the process.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fastcyclegan.errors import UserError, cannot_write
from fastcyclegan.tiles.spans import Window

Kind = Literal["device", "host", "disk"]


class Rows(Protocol):
    """Rows of pixels with channels, [rows, W, C]."""

    def read(self, window: Window) -> Tensor:
        """Return the pixels of a window, as a tensor [h, w, C]; it can be a view."""

    def write(self, window: Window, pixels: Tensor) -> None:
        """Store pixels [h, w, C]."""

    def close(self) -> None:
        """Give the memory back."""


class TensorRows:
    """Rows in a tensor."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._tensor: Tensor | None = torch.empty(tuple(shape), dtype=dtype, device=device)

    def _part(self, window: Window) -> Tensor:
        assert self._tensor is not None
        (top, bottom), (left, right) = window
        return self._tensor[top:bottom, left:right]

    def read(self, window: Window) -> Tensor:
        return self._part(window)

    def write(self, window: Window, pixels: Tensor) -> None:
        self._part(window).copy_(pixels)

    def close(self) -> None:
        self._tensor = None


class FileRows:
    """Rows in a file without a name in ``folder``. Raises UserError if the disk has no room or fails."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, folder: Path) -> None:
        self._width, self._channels = shape[1], shape[2]
        self._dtype, self._folder = dtype, folder
        self._pixel = self._channels * dtype.itemsize
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            self._reserve(shape[0] * self._width * self._pixel)
        except OSError as error:
            raise self._failed(error) from None

    def _reserve(self, size: int) -> None:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except OSError:
            self._file.close()
            raise

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"--tile_storage disk: {cannot_write(self._folder, error)}")

    def _offset(self, row: int, column: int) -> int:
        return (row * self._width + column) * self._pixel

    def read(self, window: Window) -> Tensor:
        (top, bottom), (left, right) = window
        pixels = torch.empty(bottom - top, right - left, self._channels, dtype=self._dtype)
        try:
            for number, line in enumerate(_bytes_of(pixels)):
                _read_all(self._file, line, self._offset(top + number, left))
        except OSError as error:
            raise UserError(f"--tile_storage disk: cannot read {self._folder}: {error}") from None
        return pixels

    def write(self, window: Window, pixels: Tensor) -> None:
        (top, _), (left, _) = window
        try:
            for number, line in enumerate(_bytes_of(pixels.to("cpu", self._dtype).contiguous())):
                _write_all(self._file, line, self._offset(top + number, left))
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _bytes_of(pixels: Tensor) -> list[memoryview]:
    """Return the memory of each row of contiguous ``pixels`` [h, w, C]."""
    rows = pixels.flatten(1).view(torch.uint8).numpy()
    return [memoryview(row) for row in rows]


def _read_all(file: Any, line: memoryview, offset: int) -> None:
    done = 0
    while done < len(line):
        count = os.preadv(file.fileno(), [line[done:]], offset + done)
        if not count:
            raise OSError("the file has become shorter")
        done += count


def _write_all(file: Any, line: memoryview, offset: int) -> None:
    done = 0
    while done < len(line):
        done += os.pwrite(file.fileno(), line[done:], offset + done)
