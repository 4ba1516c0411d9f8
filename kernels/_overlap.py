"""Compute weight gradients on a side stream, in parallel with the rest of the backward pass.

The rest of the backward pass does not need them. Memory that the side stream reads must not be reused before
it has been read. ``record_stream`` would ensure that. But during the capture of a CUDA graph, PyTorch then
frees no such memory until the capture ends, so an iteration would keep everything that its weight gradients
read. Instead, this module holds references to the tensors. It drops them once it has made the stream that
owns the memory wait for the work that reads it. From then on, that stream can reuse the memory in its own
order, both inside and outside a capture.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Limit on the bytes that are held for the side stream. The weight gradients of a residual block read about
# 36 MB at 256 x 256 in bf16: the inputs and the gradients of two convolutions, for 4 images of 66 x 66 x 256.
# If the backward pass can be three blocks ahead, both streams stay busy. More would only cost memory.
MAX_BYTES = 128 * 2**20


@dataclass
class _Held:
    """Tensors that are held because one piece of work on the side stream reads them.

    ``owner`` is the stream to which their memory belongs. ``event`` is recorded on the side stream after the
    work.
    """

    tensors: Sequence[Tensor]
    bytes: int
    owner: torch.cuda.Stream
    event: torch.cuda.Event


class _Side:
    """The side stream and the tensors held for it, oldest first.

    The tensors occupy up to MAX_BYTES, or more if a single piece of work reads more.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.bytes = self.most = 0
        self._queue: deque[_Held] = deque()
        self._unfinished: list[Sequence[Tensor]] = []
        self._owners: list[torch.cuda.Stream] = []
        # Backward passes run in autograd's threads.
        self._lock = threading.Lock()

    def hold(self, tensors: Sequence[Tensor], owner: torch.cuda.Stream) -> None:
        """Hold ``tensors``, which the latest work reads, and release older ones to stay within MAX_BYTES."""
        latest = _Held(tensors, _bytes(tensors), owner, self.stream.record_event())
        with self._lock:
            if owner not in self._owners:
                self._owners.append(owner)
            while self._queue and self.bytes + latest.bytes > MAX_BYTES:
                oldest = self._queue[0]
                oldest.owner.wait_event(oldest.event)
                self.bytes -= self._queue.popleft().bytes
            self._queue.append(latest)
            self._count(latest.bytes)

    def hold_until_end(self, tensors: Sequence[Tensor]) -> None:
        """Hold ``tensors``, which are read by work that failed half-way, until the overlapping block ends.

        No event can be recorded for them, because the failure may have broken a capture.
        """
        with self._lock:
            self._unfinished.append(tensors)
            self._count(_bytes(tensors))

    def join(self) -> None:
        """Make the streams whose memory was read wait for the side stream, and the current stream for them.

        A capture must end with all streams joined.
        """
        current = torch.cuda.current_stream(self.stream.device)
        for owner in self._owners:
            if owner != current:
                owner.wait_stream(self.stream)
                current.wait_stream(owner)
        current.wait_stream(self.stream)

    def drop(self) -> None:
        """Release all held tensors."""
        self._queue.clear()
        self._unfinished.clear()
        self.bytes = 0

    def _count(self, more: int) -> None:
        self.bytes += more
        self.most = max(self.most, self.bytes)


_side: _Side | None = None
_last: _Side | None = None


@contextlib.contextmanager
def overlapping(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Compute weight gradients on ``stream`` inside the block if they are added to ``.grad`` in place.

    See ``accumulating`` for adding in place. Leaving the block makes the current stream wait for ``stream``.
    If ``stream`` is None, nothing overlaps. The block affects every thread of the process.
    """
    global _side, _last
    before = _side
    if stream is None:
        _side = None
        try:
            yield
        finally:
            _side = before
        return
    side = _Side(stream)
    # Even if nothing will run on it: a graph under capture cannot wait for a stream that is not part of it.
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    _side = _last = side
    try:
        yield
    except BaseException:
        # In a broken capture this raises too, which would hide the original error.
        with contextlib.suppress(RuntimeError):
            side.join()
        raise
    else:
        side.join()
    finally:
        _side = before
        side.drop()


@contextlib.contextmanager
def on_side_stream(*read: Tensor, when: bool = True) -> Iterator[None]:
    """Run the block on the side stream, if there is one and ``when`` is true.

    ``read``: the tensors that the block reads. Their memory must belong to the current stream, or be kept
    alive elsewhere until the block of ``overlapping`` ends. Other streams must wait for the side stream
    before they read anything that the block writes.
    """
    side = _side
    if side is None or not when:
        yield
        return
    owner = torch.cuda.current_stream(side.stream.device)
    side.stream.wait_stream(owner)
    try:
        with torch.cuda.stream(side.stream):
            yield
    except BaseException:
        side.hold_until_end(read)
        raise
    side.hold(read, owner)


def most_held() -> int:
    """Return the peak number of bytes held in the last block of ``overlapping`` with a stream."""
    if _last is None:
        return 0
    return _last.most


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return how many bytes ``tensors`` keep alive.

    A view keeps its whole storage alive. A storage that several tensors share is counted once.
    """
    sizes = {}
    for t in tensors:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
