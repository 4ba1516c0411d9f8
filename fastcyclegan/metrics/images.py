"""Sets of image files, as metrics read them: 8-bit RGB, whatever is in the files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.halves import Half, half_size
from fastcyclegan.data.image_file import ORIENTATION, READABLE, BadImageError, Size
from fastcyclegan.errors import UserError, system_reason

Pixels = NDArray[np.uint8]


def as_rgb(pixels: Pixels) -> Pixels:
    """Return an image [H, W, 1] or [H, W, 3] as [H, W, 3]. Raises UserError for other channels."""
    if pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    raise UserError(f"metrics compare images with 3 channels or 1, got {pixels.shape[2]}")


@contextlib.contextmanager
def _header(path: Path) -> Iterator[Image.Image]:
    """Open an image file without decoding it. Raises any exception if that fails."""
    if not path.is_file():  # opening a pipe could block forever
        raise BadImageError(path, "not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, which reading them judges
        with Image.open(path, formats=READABLE) as image:
            yield image


@dataclass(frozen=True)
class ImageFiles:
    """The images of a set: files, each read whole or a ``half`` of it, resized according to ``fit``.

    What is known of the files is found out once, so they must not change meanwhile.
    """

    paths: Sequence[Path]
    fit: Fit = field(default_factory=Fit)
    half: Half | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Pixels:
        """Return image ``index`` [H, W, C] as a network takes it.

        Raises BadImageError if it cannot be read.
        """
        return load_pixels(self.paths[index], self.fit, half=self.half)

    def read(self, index: int) -> Pixels:
        """Return image ``index`` as [H, W, 3]. Raises BadImageError if it cannot be read."""
        return as_rgb(self.load(index))

    def size(self, index: int) -> Size:
        """Return the (width, height) of image ``index`` by the header of its file; (0, 0) without one."""
        with contextlib.suppress(Exception), _header(self.paths[index]) as image:  # reading it tells why
            width, height = image.size
            if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):  # stored with width and height swapped
                width, height = height, width
            return self.fit.resized(half_size((width, height), self.half))
        return 0, 0

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of what the images are: the bytes of the files, and how they are read.

        Raises BadImageError for a file that cannot be read.
        """
        fit = replace(self.fit, any_size=False)  # that decides which images are read, and not how
        whole = hashlib.sha256(json.dumps([asdict(fit), self.half]).encode())
        for path in self.paths:
            try:
                if not path.is_file():
                    raise BadImageError(path, "not a regular file" if path.exists() else "no such file")
                with path.open("rb") as stream:
                    whole.update(hashlib.file_digest(stream, "sha256").digest())
            except OSError as error:
                raise BadImageError(path, system_reason(error)) from None
        return whole.hexdigest()

    @cached_property
    def kinds(self) -> dict[str, int]:
        """How many of the files are JPEG, how many have transparency, and how many are gray."""
        counts = {"jpeg": 0, "transparent": 0, "gray": 0}
        for path in self.paths:
            with contextlib.suppress(Exception), _header(path) as image:  # reading it tells what is wrong
                counts["jpeg"] += image.format in ("JPEG", "MPO")
                bands = image.getbands()
                counts["transparent"] += "A" in bands or "a" in bands or "transparency" in image.info
                counts["gray"] += bands[0] in ("L", "1", "I", "F") or image.mode.startswith("I;")
        return counts


def described_kinds(kinds: dict[str, int], what: str) -> list[str]:
    """Return lines about files that are not plain colour images. ``what`` names the set."""
    lines = []
    for kind, text in (
        ("jpeg", "JPEG, whose compression has changed the pixels"),
        ("transparent", "partly transparent, and put on white"),
        ("gray", "gray: the values count as red, green and blue"),
    ):
        if kinds[kind]:
            count = "1 image is" if kinds[kind] == 1 else f"{kinds[kind]:,} images are"
            lines.append(f"{what}: {count} {text}")
    return lines
