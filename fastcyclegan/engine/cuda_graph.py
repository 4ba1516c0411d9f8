"""Run iterations as CUDA graphs, one for each batch size.

The first iterations of each batch size run without a graph, to warm up. Then the iteration is captured once
and replayed from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from fastcyclegan.engine.cuda_capture import NotRestoredError
from fastcyclegan.errors import UserError
from fastcyclegan.nn.layer_checks import has_hooks
from fastcyclegan.recipes.recipe import Inputs

Step = Callable[[Inputs], Tensor]
# Number of iterations before the capture. The first creates Adam's moments and tunes the kernels; in the
# second, everything is already in place.
WARM_UP = 3
# Maximum number of graphs, one for each batch size. Each stores its own launches (a few MB), and all share
# one memory pool.
MAX_GRAPHS = 8


class Capture(Protocol):
    """A function that records the launches of ``step`` without running them.

    It returns a function that replays them, and the tensor that each replay writes. If it raises, it first
    restores the device's memory, streams and random generators.
    """

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]: ...


@dataclass
class _Graph:
    """State of one batch size.

    ``seen`` counts the iterations run so far. ``replay`` runs an iteration once a graph has been captured.
    """

    seen: int = 0
    replay: Step | None = None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return ""
    return lines[0]


class Graphs:
    """Runs ``step`` as a CUDA graph once it has warmed up.

    If ``required`` is true, a failed capture ends the run. Otherwise the failure is logged, and no graph is
    used from then on. ``on_failure`` is called after a failed capture in either case.
    """

    def __init__(
        self,
        step: Step,
        capture: Capture,
        on_failure: Callable[[], None],
        log: Callable[[str], None],
        required: bool,
    ) -> None:
        self._step = step
        self._capture = capture
        self._on_failure = on_failure
        self._log = log
        self._required = required
        self._graphs: dict[Hashable, _Graph] = {}
        self._logged: set[str] = set()
        self.off = ""

    @property
    def captured(self) -> int:
        """Number of batch sizes that have a graph."""
        return sum(graph.replay is not None for graph in self._graphs.values())

    def forget(self) -> None:
        """Drop all graphs, because the tensors that they read and write have moved."""
        self._graphs.clear()

    def run(self, key: Hashable, inputs: Inputs, steady: bool) -> Tensor:
        """Run an iteration and return its losses.

        ``key`` selects the graph (see ``key_of``). If ``steady`` is false, the iteration depends on decisions
        made on the host, so it runs without a graph.
        """
        if not steady and self._graphs:
            self._log_once("no CUDA graph is used while the replay pools contain images of several sizes")
        if self.off or not steady:
            return self._step(inputs)
        if key not in self._graphs and len(self._graphs) >= MAX_GRAPHS:
            self._log_once(
                f"there are more than {MAX_GRAPHS} batch sizes; further sizes run without a CUDA graph"
            )
            return self._step(inputs)
        graph = self._graphs.setdefault(key, _Graph())
        graph.seen += 1
        if graph.seen <= WARM_UP:
            return self._step(inputs)
        if graph.replay is None:
            graph.replay = self._captured_iteration(inputs)
        if graph.replay is None:
            return self._step(inputs)
        return graph.replay(inputs)

    def _captured_iteration(self, inputs: Inputs) -> Step | None:
        """Return a function that replays an iteration of this size, or None if the capture fails.

        If graphs are required, a failed capture raises UserError.
        """
        # The numbers of a batch have the same addresses for every batch of this size. Images are copied into
        # buffers that the graph reads.
        images = {side: values.clone() for side, values in inputs.images.items()}
        buffers = replace(inputs, images=images)
        try:
            replay, losses = self._capture(lambda: self._step(buffers))
        # A library may do something that a graph cannot record. Log the error and run without a graph.
        except BaseException as error:
            self._on_failure()
            # No graph is replayed from now on, so free the memory of the earlier ones for iterations without
            # a graph.
            self._graphs.clear()
            if isinstance(error, NotRestoredError) or not isinstance(error, Exception):
                raise
            self.off = f"{type(error).__name__}: {_first_line(error)}"
            if self._required:
                raise UserError(f"--graph on: the iteration cannot be captured: {self.off}") from error
            self._log(
                f"no CUDA graph: the iteration cannot be captured ({self.off});"
                " training continues without a graph"
            )
            return None

        def run(inputs: Inputs) -> Tensor:
            for side, values in inputs.images.items():
                images[side].copy_(values)
            replay()
            return losses.clone()

        return run

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._log(text)


def key_of(inputs: Inputs, nets: Iterable[nn.Module]) -> Hashable:
    """Return a key for the graph that can run ``inputs``.

    The key covers the shapes and dtypes of the inputs, which parameters of ``nets`` are trained, and whether
    any module has hooks.
    """

    def kind(t: Tensor) -> Hashable:
        return tuple(t.shape), t.dtype

    numbers = tuple((name, kind(t)) for name, t in inputs.numbers.items())
    hooked, trained = False, []
    for net in nets:
        trained += [p.requires_grad for p in net.parameters()]
        hooked = hooked or any(map(has_hooks, net.modules()))
    images = tuple((side, kind(t)) for side, t in inputs.images.items())
    return images, numbers, hooked, tuple(trained)
