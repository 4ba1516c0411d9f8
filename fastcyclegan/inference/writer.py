"""Write translations in background threads, of which only a few wait at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fastcyclegan.data.pixels import save_image, to_image
from fastcyclegan.errors import is_out_of_memory
from fastcyclegan.inference.outputs import Output

# Maximum number of pixels that wait to be written, unless a single image has more. With the copy that is
# being encoded, they need 6 bytes per pixel.
WAITING_PIXELS = 2**26


def _save(pixels: NDArray[np.uint8], output: Output) -> None:
    output.target.parent.mkdir(parents=True, exist_ok=True)
    save_image(to_image(pixels), output.target)


def _started(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads run already: later, there may be no memory left for them."""
    pool, ready = ThreadPoolExecutor(threads), Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(ready.wait)
    ready.wait()
    return pool


@dataclass(frozen=True)
class _Waiting:
    output: Output
    pixels: int
    future: Future[None]


class Writer:
    """Saves translations in ``threads`` threads; a context manager that waits for them at its end.

    ``failed`` is called, in the caller's thread, with the description of an image whose translation cannot be
    encoded for lack of memory. Other errors of a thread are raised when a later image is saved, or at the
    end, after all other images have been written. ``written`` is the number of images on the disk.
    """

    def __init__(self, threads: int, failed: Callable[[str], None]) -> None:
        self.pool, self.limit, self.failed = _started(threads), 2 * threads, failed
        self.waiting: deque[_Waiting] = deque()
        self.pixels = self.written = 0

    def save(self, pixels: NDArray[np.uint8], output: Output) -> None:
        """Write ``pixels`` [H, W, C] in the background, after waiting until there is room for them."""
        size = pixels.shape[0] * pixels.shape[1]
        while self.waiting and (len(self.waiting) >= self.limit or self.pixels + size > WAITING_PIXELS):
            self._finish_first()
        self.waiting.append(_Waiting(output, size, self.pool.submit(_save, pixels, output)))
        self.pixels += size

    def _finish_first(self) -> None:
        first = self.waiting.popleft()
        self.pixels -= first.pixels
        try:
            first.future.result()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.failed(f"{first.output.source}: its translation cannot be written: out of memory")
        else:
            self.written += 1

    def drain(self) -> None:
        """Wait until all images have been written. Raises the first error of a thread."""
        first_error: Exception | None = None
        while self.waiting:
            try:
                self._finish_first()
            except Exception as error:
                if first_error is None:
                    first_error = error
        if first_error is not None:
            raise first_error

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.drain()
        except Exception:
            if error is None:  # otherwise the earlier error ends the program already
                raise
        finally:
            self.pool.shutdown(cancel_futures=True)
