"""Pillow's limit on the pixels of an image, and how to read an image beyond it if the caller allows that.

Pillow keeps the limit in a variable of the process, ``Image.MAX_IMAGE_PIXELS``, and checks every file that it
opens. Here, a file beyond the limit is opened by the same code without that check. Some formats check the
size again in code of their own. For these alone, the variable is changed while a file is opened or decoded.
Readers of ours that respect the limit notice no change, because they ask ``max_pixels``.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import TypeVar

from PIL import Image, ImageFile

Result = TypeVar("Result")


class _Lifting:
    """How many threads have lifted the limit at the moment, and what it is without them."""

    def __init__(self) -> None:
        self.lock, self.count, self.limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Lift the limit in the body."""
        with self.lock:
            if self.count == 0:
                self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.count += 1
        try:
            yield
        finally:
            with self.lock:
                self.count -= 1
                if self.count == 0:
                    Image.MAX_IMAGE_PIXELS = self.limit

    def current(self) -> int | None:
        with self.lock:
            return self.limit if self.count else Image.MAX_IMAGE_PIXELS

    def reset(self) -> None:
        """Restore the limit in a new process, which has none of the threads that lifted it."""
        if self.count:
            Image.MAX_IMAGE_PIXELS = self.limit
        self.lock, self.count = threading.Lock(), 0


_lifting = _Lifting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lifting.reset)


def max_pixels() -> int | None:
    """Return the most pixels that an image may have without permission, or None if there is no limit.

    Pillow warns about an image of half as many.
    """
    limit = _lifting.current()
    return None if limit is None else 2 * limit


def beyond_limit(action: Callable[[], Result]) -> Result:
    """Return the result of ``action``, which opens or decodes an image, whatever its size."""
    with contextlib.suppress(Image.DecompressionBombError):
        return action()
    with _lifting():
        return action()


def open_beyond_limit(data: bytes, formats: Sequence[str]) -> ImageFile.ImageFile:
    """Read the header of an encoded image of one of ``formats``, like ``Image.open``, whatever its size.

    ``Image.open`` must have refused it, so that the code for its format is loaded.
    """
    for name in formats:
        opener, accepts = Image.OPEN.get(name, (None, None))
        if opener is None:
            continue
        answer = accepts is None or accepts(data[:16])  # a text if this Pillow lacks the decoder
        if not answer or isinstance(answer, str):
            continue
        # The errors by which Pillow finds out that a file has another format.
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            return beyond_limit(lambda opener=opener: opener(BytesIO(data), ""))  # type: ignore[misc]
    raise Image.UnidentifiedImageError
