"""Work that nothing waits for, beside the work that goes on: weight gradients on a stream of their own.

What the side stream reads must not be given away before it was read. ``record_stream`` would see to that, but
inside the capture of a CUDA graph PyTorch then frees nothing until the capture ends: an iteration would keep
all that its weight gradients read. Instead references are held, and dropped after the stream that the memory
belongs to was told to wait for the work that reads it: from then on that stream may use the memory again, in
its own order, in a capture as outside.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes that are held for the side stream. The weight gradients of a residual block read about 36 MB at 256 x
# 256 in bf16: the inputs and the gradients of two convolutions, for 4 images of 66 x 66 x 256. Three blocks
# ahead keep both streams busy; more would only cost memory.
MOST_BYTES = 128 * 2**20


@dataclass
class _Held:
    """What one piece of work reads: the stream whose memory it is, and the event on the side stream that is
    recorded after the work.
    """

    tensors: Sequence[Tensor]
    bytes: int
    owner: torch.cuda.Stream
    event: torch.cuda.Event


class _Side:
    """The side stream and what is held for it, oldest first: up to MOST_BYTES, or what one piece of work
    reads if that is more.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.bytes = self.most = 0
        self._queue: deque[_Held] = deque()
        self._unfinished: list[Sequence[Tensor]] = []
        self._owners: list[torch.cuda.Stream] = []
        # Backward passes run in threads of autograd's.
        self._lock = threading.Lock()

    def hold(self, tensors: Sequence[Tensor], owner: torch.cuda.Stream) -> None:
        """Hold ``tensors``, which the work that was launched last reads, and let go of the oldest for
        them."""
        held = _Held(tensors, _bytes(tensors), owner, self.stream.record_event())
        with self._lock:
            if owner not in self._owners:
                self._owners.append(owner)
            while self._queue and self.bytes + held.bytes > MOST_BYTES:
                oldest = self._queue[0]
                oldest.owner.wait_event(oldest.event)
                self.bytes -= self._queue.popleft().bytes
            self._queue.append(held)
            self._count(held.bytes)

    def hold_to_the_end(self, tensors: Sequence[Tensor]) -> None:
        """Hold what work reads that failed half-way: no event may be recorded in a capture that it has
        broken.
        """
        with self._lock:
            self._unfinished.append(tensors)
            self._count(_bytes(tensors))

    def join(self) -> None:
        """Let all streams whose memory was read wait for the side stream, and the current one for them: a
        capture ends with all joined.
        """
        current = torch.cuda.current_stream(self.stream.device)
        for owner in self._owners:
            if owner != current:
                owner.wait_stream(self.stream)
                current.wait_stream(owner)
        current.wait_stream(self.stream)

    def drop(self) -> None:
        """Let go of everything."""
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
    """Inside the block, weight gradients that are added to ``.grad`` in place (``accumulating``) are computed
    on ``stream``.

    Leaving the block makes the current stream wait for it. None: no overlap. It holds for every thread of the
    process.
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
    # Also where nothing will run there: a graph that is captured cannot wait for a stream that is not part of
    # it.
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    _side = _last = side
    try:
        yield
    except BaseException:
        # In a capture that broke this raises too, and would hide why it broke.
        with contextlib.suppress(RuntimeError):
            side.join()
        raise
    else:
        side.join()
    finally:
        _side = before
        side.drop()


@contextlib.contextmanager
def beside(*read: Tensor, when: bool = True) -> Iterator[None]:
    """Run the block on the side stream, if there is one and ``when`` says so; it reads ``read`` and writes
    nothing that others read before they wait.

    ``read`` is memory of the current stream, or is kept elsewhere until the block of ``overlapping`` ends.
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
        side.hold_to_the_end(read)
        raise
    side.hold(read, owner)


def most_held() -> int:
    """Return the most bytes that were held at a time in the last block of ``overlapping`` with a stream."""
    if _last is None:
        return 0
    return _last.most


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of the memory that ``tensors`` keep: views of one memory keep all of it, once."""
    sizes = {}
    for t in tensors:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
