"""Run a network as CUDA graphs, one for each size that comes more than once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcyclegan.engine.cuda_capture import NotRestoredError
from fastcyclegan.engine.cuda_graph import Capture
from fastcyclegan.errors import one_line

# Maximum number of sizes that have a graph. The graphs share one memory pool.
MAX_GRAPHS = 4
# A graph gives way to that of another size after this many calls without it. If sizes alternate, some of them
# run without a graph, because capturing one takes longer than it saves.
UNUSED_CALLS = 32
# Number of sizes that are remembered for having come once.
REMEMBERED = 256
# Larger batches are not captured: they keep a GPU busy for longer than their launches take, and a graph
# would keep their memory, about 0.8 KB per pixel.
MAX_PIXELS = 2**20

Step = Callable[[Tensor, Tensor | None], Tensor]
"""Returns the result for images, and for the keys of their dropout masks, if the network needs them."""


@dataclass
class _Graph:
    """A captured call. A replay reads ``images`` and ``keys`` and writes ``result``."""

    images: Tensor
    keys: Tensor | None
    result: Tensor
    replay: Callable[[], object]
    last_call: int


class SizeGraphs:
    """Runs calls of one network, and captures a call when its size comes for the second time.

    A capture that fails is logged, and from then on nothing is captured. That includes lack of memory: an
    uncaptured call needs less, and raises the error if it does not fit either.
    """

    def __init__(self, capture: Capture, log: Callable[[str], object]) -> None:
        self._capture, self._log = capture, log
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()  # the least recently used one first
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._calls = 0
        self.off = ""
        """Why nothing is captured any more, or an empty text."""

    @property
    def captured(self) -> int:
        """Number of sizes that have a graph."""
        return len(self._graphs)

    def run(self, step: Step, images: Tensor, settings: Hashable = (), keys: Tensor | None = None) -> Tensor:
        """Return ``step(images, keys)``, a new tensor that later calls do not change.

        ``settings`` are whatever else, besides the size and the dtype of the images, a graph depends on.
        """
        self._calls += 1
        pixels = images.shape[0] * images.shape[-2] * images.shape[-1]
        if self.off or not 0 < pixels <= MAX_PIXELS:
            return step(images, keys)
        key = images.shape, images.dtype, keys is None, settings
        graph = self._graphs.get(key)
        if graph is None and self._is_due(key):
            graph = self._captured(step, images, keys)
            if graph is not None:
                self._graphs[key] = graph
        if graph is None:
            result = step(images, keys)
            self._remember(key)
            return result
        self._graphs.move_to_end(key)
        graph.last_call = self._calls
        graph.images.copy_(images)
        if graph.keys is not None and keys is not None:
            graph.keys.copy_(keys)
        graph.replay()
        return graph.result.clone()

    def _is_due(self, key: Hashable) -> bool:
        """Return whether the call should be captured, after making room for its graph."""
        if key not in self._seen:
            return False
        if len(self._graphs) < MAX_GRAPHS:
            return True
        oldest, graph = next(iter(self._graphs.items()))
        if self._calls - graph.last_call <= UNUSED_CALLS:
            return False
        del self._graphs[oldest]
        return True

    def _remember(self, key: Hashable) -> None:
        """Note that a call with ``key`` has run, so that its kernels are compiled and tuned."""
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _captured(self, step: Step, images: Tensor, keys: Tensor | None) -> _Graph | None:
        """Return a graph of ``step``, or None if the capture fails."""
        buffer, key_buffer = images.clone(), None if keys is None else keys.clone()
        try:
            replay, result = self._capture(lambda: step(buffer, key_buffer))
        except BaseException as error:
            # Free the memory of the other graphs, too: from now on, no graph is used.
            self._graphs.clear()
            if isinstance(error, NotRestoredError):
                raise _start_again(error) from error
            if not isinstance(error, Exception):
                raise
            self.off = f"{type(error).__name__}: {one_line(error)}"
        if self.off:
            self._log(
                f"no CUDA graph: the network cannot be captured ({self.off}); images are translated without"
                " a graph"
            )
            return None
        return _Graph(buffer, key_buffer, result, replay, self._calls)


def _start_again(error: NotRestoredError) -> NotRestoredError:
    reason = "" if error.__cause__ is None else f" ({one_line(error.__cause__)})"
    return NotRestoredError(
        f"a CUDA graph capture failed and could not be undone{reason}; start the program again"
    )


def settings_of_convolutions() -> Hashable:
    """Return torch's settings of convolutions, which a graph fixes when it is captured."""
    cudnn = torch.backends.cudnn
    precision = cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return cudnn.enabled, cudnn.deterministic, cudnn.benchmark, precision
