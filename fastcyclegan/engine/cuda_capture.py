"""Captures iterations into CUDA graphs; where a capture fails, PyTorch's allocator, random generators and
streams are as before it.

PyTorch does not see to that. An error inside a capture makes ``capture_end`` raise before it ends the
allocation into the graph's pool, before the random generator leaves its capturing mode (of torch before
2.13), and before ``torch.cuda.graph`` puts the current stream back.
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError

# Graphs whose capture failed, kept for good: PyTorch's allocator of pinned memory goes on asking them, by
# address, whether a stream is theirs, and nothing in Python ends that. They hold next to nothing.
_half_made: list[torch.cuda.CUDAGraph] = []


class NotRestoredError(UserError):
    """A capture failed and could not be undone: what runs on the device after it cannot be trusted."""


class CudaCapture:
    """Captures on ``stream`` into CUDA graphs that share one memory pool: they run one after the other.

    Where a capture fails it raises what ``step`` raised, or else what ended the capture, once all is as
    before; NotRestoredError where it is not.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        before = _Before(self.stream)
        # A pool that all graphs have left may still have memory in use, and PyTorch lets no graph into it
        # again.
        if self._pool is None or not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        losses = _record(graph, step, self._pool, self.stream)
        if isinstance(losses, Tensor):
            self._graphs.add(graph)
            return graph.replay, losses
        # Into this pool none can be captured again: the allocator of pinned memory still takes it for one
        # that is being recorded.
        self._pool = None
        _forget_frames(losses)
        before.restore(losses)
        try:
            raise losses
        finally:
            # Its traceback holds this frame: together they would keep what the step left until Python
            # collects garbage.
            del losses


class _Before:
    """The current stream and the random generators as they were before a capture."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.here = stream, torch.cuda.current_stream(stream.device)
        self.generator = torch.cuda.default_generators[stream.device.index]
        self.numbers, self.host_numbers = self.generator.clone_state(), torch.get_rng_state()

    def restore(self, why: BaseException) -> None:
        """Put all back after a capture that failed because of ``why``."""
        torch.cuda.set_stream(self.here)
        torch.set_rng_state(self.host_numbers)
        try:
            spare = _number_on(self.stream.device)
            # A capture that succeeds takes the generator's state out of its capturing mode, and leaves it the
            # object that earlier graphs draw from. Before a capture PyTorch also gives back the memory that
            # nobody uses.
            again = _record(torch.cuda.CUDAGraph(), spare.zero_, torch.cuda.graph_pool_handle(), self.stream)
            torch.cuda.set_stream(self.here)
            if not isinstance(again, Tensor):
                # Then earlier graphs cannot draw, but what runs without a graph can.
                self.generator.graphsafe_set_state(self.numbers)
            self.generator.set_state(self.numbers.get_state())
        except RuntimeError as error:
            raise _not_restored(error) from why


def _number_on(device: torch.device) -> Tensor:
    """Return a number on ``device``, and end an error there that a library met and nobody asked for: the next
    launch would be blamed.
    """
    with contextlib.suppress(RuntimeError):
        return torch.zeros(1, device=device).add_(1)
    return torch.zeros(1, device=device)


def _record(
    graph: torch.cuda.CUDAGraph, step: Callable[[], Tensor], pool: Any, stream: torch.cuda.Stream
) -> Tensor | BaseException:
    """Capture ``step`` into ``graph`` and return its result, or why that failed: then nothing is allocated
    into ``pool`` any more.
    """
    begun = False
    failure: BaseException | None = None
    try:
        # Loaders allocate in threads of their own meanwhile, which is no business of the capture's.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            begun = True
            try:
                result = step()
            except BaseException as error:
                failure = error
                raise
        return result
    except BaseException as error:
        # The end of a capture that broke is an error too, which does not tell why it broke. An interrupt is
        # the user's word.
        if failure is None or not isinstance(error, Exception):
            failure = error
    _undo(graph, begun, pool, stream, failure)
    return failure


def _undo(
    graph: torch.cuda.CUDAGraph, begun: bool, pool: Any, stream: torch.cuda.Stream, why: BaseException
) -> None:
    """End the capture, if it is still on, and what is allocated for it; leave the pool to the graphs that
    were there before.
    """
    torch.cuda.set_stream(stream)
    if torch.cuda.is_current_stream_capturing():
        # Where the step left another stream current, the capture was not ended at all.
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        if torch.cuda.is_current_stream_capturing():
            raise _not_restored(why) from why
    ended = False
    try:
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        ended = True
    except RuntimeError as error:
        # That is where capture_end got this far itself, or the capture never came to allocate.
        if "not currently recording" not in str(error):
            raise _not_restored(error) from why
    if begun or ended:
        if not _releases_its_pool(graph):
            torch._C._cuda_releasePool(stream.device.index, pool)
        _half_made.append(graph)
    graph.reset()


def _releases_its_pool(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether the capture got so far that the graph releases its pool itself: only then does it name it."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _forget_frames(error: BaseException | None) -> None:
    """Let go of what the frames of a traceback hold: tensors in the pool, and autograd's graph of them."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _not_restored(error: BaseException) -> NotRestoredError:
    return NotRestoredError(
        f"a CUDA graph capture failed and cannot be undone ({type(error).__name__}: {error}): train with"
        " --graph off"
    )
