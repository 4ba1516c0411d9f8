"""Work that nothing waits for, beside the work that goes on: weight gradients on a stream of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_side: torch.cuda.Stream | None = None


@contextlib.contextmanager
def overlapping(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Inside the block, weight gradients that are added to ``.grad`` in place (``accumulating``) are computed on ``stream``.

    Leaving the block makes the current stream wait for it. None: no overlap. It holds for every thread of the process.
    """
    global _side
    before, _side = _side, stream
    if stream is not None:
        # Also where nothing will run there: a graph that is captured cannot wait for a stream that is not part of it.
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    try:
        yield
    finally:
        _side = before
        if stream is not None:
            torch.cuda.current_stream(stream.device).wait_stream(stream)


@contextlib.contextmanager
def beside(*read: Tensor) -> Iterator[None]:
    """Run the block on the side stream, if there is one; it reads ``read`` and writes nothing that others read before they wait."""
    if _side is None:
        yield
        return
    _side.wait_stream(torch.cuda.current_stream(_side.device))
    with torch.cuda.stream(_side):
        yield
    for tensor in read:
        # So that its memory is not given away before the side stream has read it.
        tensor.record_stream(_side)
