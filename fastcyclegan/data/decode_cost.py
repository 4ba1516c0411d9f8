"""Bound the memory and the time that decoding images takes.

A file of a few bytes can declare an image of gigabytes, and a progressive JPEG can take any number of passes.
Whether an image exceeds the bounds depends only on its file, not on the machine. A caller can allow images
beyond the bounds, which the machine's free memory alone then limits.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from PIL import ImageFile

from fastcyclegan.data.pixel_limit import max_pixels
from fastcyclegan.data.plain_files import jpeg_scans

GIB = 2**30
MOST_BYTES = GIB
"""Maximum number of bytes that decoding an image may take, and all images that a process decodes at once."""
MOST_SCANS = 100
"""Maximum number of passes over a JPEG image. Encoders write about ten."""
WAY_OUT = "pass --allow_decompression_bombs"
"""The end of a message about an image that costs too much."""

# Bytes per pixel and channel that decoders need besides the decoded image, measured with Pillow 13. They hold
# coefficients, samples of 32 bits, a canvas, or a second copy.
_EXTRA = {"AVIF": 4, "JPEG2000": 6, "TIFF": 1, "WEBP": 4}
_EXTRA_JPEG = 2  # if the JPEG image has several scans


def stored_bytes(image: ImageFile.ImageFile) -> int:
    """Return the number of bytes that the decoded pixels of ``image`` take in Pillow's memory."""
    per_pixel = 4
    if image.mode in ("1", "L", "P"):
        per_pixel = 1
    elif image.mode.startswith("I;16"):
        per_pixel = 2
    row = -(-image.width * per_pixel // 4) * 4
    return image.height * (row + 8)  # with a pointer to each row


def bytes_to_decode(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return the peak number of bytes that decoding ``image`` takes, besides those of its file ``data``."""
    channels = len(image.getbands())
    extra = 0
    if image.format in _EXTRA:
        extra = _EXTRA[image.format] * channels
    elif image.format in ("JPEG", "MPO") and _has_several_scans(image, data):
        extra = _EXTRA_JPEG * channels
    return stored_bytes(image) + image.width * image.height * extra


def bytes_to_open(data: bytes) -> int:
    """Return the number of bytes that Pillow takes to open the encoded image ``data``, besides small ones.

    Only WebP images take any: two canvases.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    width = height = 0
    if data[12:16] == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif data[12:16] == b"VP8L":
        size = int.from_bytes(data[21:25], "little")
        width, height = 1 + size % 2**14, 1 + (size >> 14) % 2**14
    elif data[12:16] == b"VP8 ":
        width, height = (int.from_bytes(data[at : at + 2], "little") % 2**14 for at in (26, 28))
    return 8 * width * height


def _has_several_scans(image: ImageFile.ImageFile, data: bytes) -> bool:
    return "progressive" in image.info or jpeg_scans(data, 2) > 1


def too_many_pixels() -> str:
    """Return why an image is refused that has more than ``max_pixels``."""
    return f"it has more than {max_pixels():,} pixels; make the image smaller or {WAY_OUT}"


def excess(image: ImageFile.ImageFile, data: bytes) -> str:
    """Return why decoding ``image`` would cost too much, or "" if it would not."""
    most, needed = max_pixels(), bytes_to_decode(image, data)
    if most is not None and image.width * image.height > most:
        return too_many_pixels()
    if needed > MOST_BYTES:
        return (
            f"decoding its {image.width}x{image.height} pixels takes {needed / GIB:.1f} GiB of memory, and"
            f" the limit is {MOST_BYTES / GIB:g} GiB; make the image smaller or {WAY_OUT}"
        )
    if image.format in ("JPEG", "MPO") and jpeg_scans(data, MOST_SCANS + 1) > MOST_SCANS:
        return (
            f"it has more than {MOST_SCANS} scans, which would take long to decode; save the image again or"
            f" {WAY_OUT}"
        )
    return ""


def require_bounded(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return ``bytes_to_decode``. Raises ValueError if decoding ``image`` would cost too much."""
    reason = excess(image, data)
    if reason:
        raise ValueError(reason)
    return bytes_to_decode(image, data)


class Budget:
    """A number of bytes that the threads of this process share.

    A thread that wants more than is left waits until others have given enough back. One that wants more than
    there are in all gets them when no other has any.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reset()

    def reset(self) -> None:
        """Forget what was taken, as a new process must, which has none of the threads that took it."""
        self.taken = 0
        self._first_in_line = threading.Lock()
        self._returned = threading.Condition()

    @contextlib.contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Hold ``count`` bytes during the body. Bodies must not nest."""
        # Only the first in line waits for bytes, so one that wants many is not overtaken for ever.
        with self._first_in_line, self._returned:
            self._returned.wait_for(lambda: not self.taken or self.taken + count <= self.total)
            self.taken += count
        try:
            yield
        finally:
            with self._returned:
                self.taken -= count
                self._returned.notify_all()


FILES = Budget(MOST_BYTES)
"""For the encoded files that are being decoded."""
DECODED = Budget(MOST_BYTES)
"""For the pixels of the images that are being decoded."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FILES.reset)
    os.register_at_fork(after_in_child=DECODED.reset)
