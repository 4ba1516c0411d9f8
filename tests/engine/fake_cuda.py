"""A stand-in for PyTorch's bookkeeping of CUDA graph captures, modelled on its source.

It tracks which pools are being allocated into, which generators draw and which stream is current.
``torch.cuda.graph`` itself runs unchanged. With ``old``, the stand-in imitates torch before 2.13, where a
random generator has one state, which is either in capturing mode or not; newer versions keep a separate state
for each capture. Kernels, memory and random numbers are not simulated, only counted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

PREVIOUS = "CUDA error: operation failed due to a previous error during capture"
Pool = tuple[int, int]


class Stream:
    """A fake stream.

    ``capture`` is the graph that is capturing it, if any. ``broken`` is true if that capture can no longer
    succeed.
    """

    def __init__(self) -> None:
        self.device = torch.device("cpu", 0)
        self.capture: Graph | None = None
        self.broken = False


class State:
    """The seed and offset of a generator. Graphs that draw from the generator share them."""

    def __init__(self, seed: int, offset: int) -> None:
        self.seed, self.offset, self.capturing = seed, offset, False


class Generator:
    """Stands in for the device's default random generator."""

    def __init__(self, cuda: FakeCuda, state: State) -> None:
        self.cuda, self.state = cuda, state

    def clone_state(self) -> Generator:
        return Generator(self.cuda, State(self.state.seed, self.state.offset))

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state

    def get_state(self) -> Tensor:
        return torch.tensor([self.state.seed, self.state.offset])

    def set_state(self, state: Tensor) -> None:
        self.state.seed, self.state.offset = state.tolist()

    def draw(self) -> tuple[int, int]:
        """Draw random numbers and return the seed and offset that identify them.

        If a capture is active, its graph records the draw.
        """
        capturing = self.cuda.current.capture is not None
        if self.cuda.old and capturing is not self.state.capturing:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        if capturing:
            self.cuda.current.capture.drawn += 4
        else:
            self.state.offset += 4
        return self.state.seed, self.state.offset


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.ended, self.drawn = cuda, False, 0

    def capture_begin(
        self, pool: Pool = (0, 0), capture_error_mode: str = "global", check_input_liveness: bool = False
    ) -> None:
        self.state = self.cuda.generator.state
        self.state.capturing = True
        self.cuda.fail("before the pool")
        self.stream, self._pool = self.cuda.current, pool
        self.cuda.begin(self.cuda.routes, pool, self)
        self.cuda.begin(self.cuda.host_routes, pool, self)
        self.cuda.fail("begin")
        self.stream.capture, self.stream.broken = self, False

    def capture_end(self) -> None:
        if self.cuda.current is not self.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        broken, self.stream.capture = self.stream.broken or self.stream.capture is None, None
        self.cuda.fail("end")
        if broken:
            raise RuntimeError(PREVIOUS)
        self.cuda.end_allocation(0, self._pool)
        del self.cuda.host_routes[self._pool]
        self.cuda.fail("no graph")
        self.state.capturing = False
        self.ended = True
        self.cuda.fail("instantiate")

    def pool(self) -> Pool:
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self._pool

    def replay(self) -> None:
        if not self.ended or (self.cuda.old and self.state.capturing):
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        self.state.offset += self.drawn

    def reset(self) -> None:
        if self.ended:
            self.ended = False
            self.cuda.release(0, self._pool)

    def __del__(self) -> None:
        self.reset()
        self.cuda.dead.add(id(self))


class FakeCuda:
    """A fake device, with its allocators, its random generator and the current stream.

    The allocators record which pools they allocate into and how many graphs use each pool.
    """

    def __init__(self, patch: pytest.MonkeyPatch, old: bool) -> None:
        self.old = old
        self.main, self.stream = Stream(), Stream()
        self.current = self.main
        self.generator = Generator(self, State(7, 40))
        self.routes: dict[Pool, int] = {}
        self.host_routes: dict[Pool, int] = {}
        self.uses: Counter[Pool] = Counter()
        self.known: set[Pool] = set()
        self.dead: set[int] = set()
        self.fails: dict[str, BaseException] = {}
        self.pending: list[BaseException] = []
        for name, value in {
            "CUDAGraph": lambda: Graph(self),
            "stream": self.on,
            "current_stream": lambda device=None: self.current,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "is_current_stream_capturing": lambda: self.current.capture is not None,
            "graph_pool_handle": self.new_pool,
            "default_generators": (self.generator,),
            "synchronize": lambda device=None: self.fail("synchronize"),
            "empty_cache": lambda: None,
            "manual_seed_all": lambda seed: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocation, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", self.release, raising=False)
        patch.setattr(torch, "zeros", self._zeros(torch.zeros))

    def fail(self, point: str) -> None:
        """Raise the error that a test has injected at ``point``, once."""
        if point in self.fails:
            raise self.fails.pop(point)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def new_pool(self) -> Pool:
        self.known.add(pool := (0, len(self.known) + 1))
        return pool

    def begin(self, routes: dict[Pool, int], pool: Pool, graph: Graph) -> None:
        if routes is self.routes:
            if pool in self.uses and self.uses[pool] == 0:
                raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
            self.uses[pool] += 1
        if pool in routes:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        routes[pool] = id(graph)

    def end_allocation(self, device: int, pool: Pool) -> None:
        self.fail("end of the allocation")
        if self.routes.pop(pool, None) is None:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def release(self, device: int, pool: Pool) -> None:
        assert self.uses[pool] > 0, "released more often than used"
        self.uses[pool] -= 1

    def pin(self) -> None:
        """Allocate pinned memory, for which the allocator queries every graph that it knows."""
        assert not self.dead & set(self.host_routes.values()), (
            "the allocator used a graph that no longer exists"
        )

    def _zeros(self, real: Any) -> Any:
        """Return a ``zeros`` that raises each pending error once, at the next launch, as CUDA does."""

        def zeros(*size: Any, **options: Any) -> Tensor:
            if self.pending:
                raise self.pending.pop(0)
            return real(*size, **options)

        return zeros
