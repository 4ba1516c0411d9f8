"""Capture iterations into CUDA graphs, and undo captures that fail.

After a failed capture, PyTorch's allocator, random generators and streams are restored. PyTorch does not do
this itself. An error inside a capture makes ``capture_end`` raise too early: the allocation into the graph's
pool is still active, the random generator is still in capturing mode (before torch 2.13), and
``torch.cuda.graph`` has not restored the current stream.
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

# Graphs whose capture failed, kept until the process ends. PyTorch's pinned-memory allocator keeps using
# their addresses to check whether a stream belongs to them, and nothing in Python can stop it. They take
# almost no memory.
_failed_graphs: list[torch.cuda.CUDAGraph] = []


class NotRestoredError(UserError):
    """A capture failed and could not be undone, so later work on the device cannot be trusted."""


class CudaCapture:
    """Captures work on ``stream`` into CUDA graphs.

    The graphs share one memory pool, because they run one after another. If a capture fails, the previous
    state is restored, and then the error of ``step`` is re-raised, or the error that ended the capture if
    ``step`` raised none. Raises NotRestoredError if the state cannot be restored.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        before = _StateBefore(self.stream)
        # A pool without any remaining graphs may still have memory in use, and PyTorch accepts no new graph
        # in such a pool.
        if self._pool is None or not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        losses = _record(graph, step, self._pool, self.stream)
        if isinstance(losses, Tensor):
            self._graphs.add(graph)
            return graph.replay, losses
        # Nothing more can be captured into this pool, because the pinned-memory allocator still considers it
        # to be recording.
        self._pool = None
        _clear_frames(losses)
        before.restore(losses)
        try:
            raise losses
        finally:
            # The error's traceback refers to this frame. Such a cycle would keep the step's tensors alive
            # until the next garbage collection.
            del losses


class _StateBefore:
    """The current stream and the random state as they were before a capture."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream, self.current = stream, torch.cuda.current_stream(stream.device)
        self.generator = torch.cuda.default_generators[stream.device.index]
        self.random_state, self.host_random_state = self.generator.clone_state(), torch.get_rng_state()

    def restore(self, failure: BaseException) -> None:
        """Restore the current stream and the random state after a capture failed with ``failure``."""
        torch.cuda.set_stream(self.current)
        torch.set_rng_state(self.host_random_state)
        try:
            scratch = _scratch_on(self.stream.device)
            # A successful capture takes the generator out of capturing mode and keeps the same state object,
            # from which earlier graphs draw. PyTorch also frees unused memory before a capture.
            outcome = _record(
                torch.cuda.CUDAGraph(), scratch.zero_, torch.cuda.graph_pool_handle(), self.stream
            )
            torch.cuda.set_stream(self.current)
            if not isinstance(outcome, Tensor):
                # After this, earlier graphs can no longer draw random numbers, but work outside graphs can.
                self.generator.graphsafe_set_state(self.random_state)
            self.generator.set_state(self.random_state.get_state())
        except RuntimeError as error:
            raise _not_restored(error) from failure


def _scratch_on(device: torch.device) -> Tensor:
    """Return a one-element tensor on ``device``, after clearing any error that is pending there.

    A library may have caused such an error without checking for it. The next launch would then report it.
    """
    with contextlib.suppress(RuntimeError):
        return torch.zeros(1, device=device).add_(1)
    return torch.zeros(1, device=device)


def _record(
    graph: torch.cuda.CUDAGraph, step: Callable[[], Tensor], pool: Any, stream: torch.cuda.Stream
) -> Tensor | BaseException:
    """Capture ``step`` into ``graph`` and return its result, or the error that made the capture fail.

    After a failure, nothing is allocated into ``pool`` any more.
    """
    started = False
    failure: BaseException | None = None
    try:
        # Loader threads allocate memory at the same time, which must not disturb the capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            started = True
            try:
                result = step()
            except BaseException as error:
                failure = error
                raise
        return result
    except BaseException as error:
        # Ending a broken capture raises an error too, which does not explain the failure: keep the first one.
        # An interrupt has priority, because it comes from the user.
        if failure is None or not isinstance(error, Exception):
            failure = error
    _undo(graph, started, pool, stream, failure)
    return failure


def _undo(
    graph: torch.cuda.CUDAGraph, started: bool, pool: Any, stream: torch.cuda.Stream, failure: BaseException
) -> None:
    """End the capture if it is still active, stop allocating for it, and release its use of the pool."""
    torch.cuda.set_stream(stream)
    if torch.cuda.is_current_stream_capturing():
        # If the step left another stream current, the capture has not been ended.
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        if torch.cuda.is_current_stream_capturing():
            raise _not_restored(failure) from failure
    ended = False
    try:
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        ended = True
    except RuntimeError as error:
        # Expected if capture_end got far enough to stop the allocation, or if the capture never began to
        # allocate.
        if "not currently recording" not in str(error):
            raise _not_restored(error) from failure
    if started or ended:
        if not _releases_its_pool(graph):
            torch._C._cuda_releasePool(stream.device.index, pool)
        _failed_graphs.append(graph)
    graph.reset()


def _releases_its_pool(graph: torch.cuda.CUDAGraph) -> bool:
    """Return whether ``graph`` will release its pool itself.

    A graph does so only if its capture got far enough. In that case ``graph.pool()`` returns the pool's id.
    """
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True


def _clear_frames(error: BaseException | None) -> None:
    """Release the objects that the frames of ``error``'s traceback keep alive.

    These are tensors in the pool and their autograd graph.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _not_restored(error: BaseException) -> NotRestoredError:
    return NotRestoredError(
        f"a CUDA graph capture failed and could not be undone ({type(error).__name__}: {error}); train with"
        " --graph off"
    )
