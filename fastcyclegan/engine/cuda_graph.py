"""Iterations as one CUDA graph for each size of batch: warmed up by real iterations, captured once, then
replayed.
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
# Iterations before the capture: the first makes the moments and tunes the kernels, the second finds
# everything in place.
WARM_UP = 3
# Graphs that are kept, one a size of batch: each holds its launches (a few MB), they share their memory.
MOST_GRAPHS = 8


class Capture(Protocol):
    """Records what ``step`` launches, without running it; returns what runs it again, and the tensor that
    each run writes.

    Where it raises, the device's memory, streams and random generators are as before.
    """

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]: ...


@dataclass
class _Graph:
    """One size of batch: how often it ran, and once it is captured what runs it."""

    seen: int = 0
    replay: Step | None = None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return ""
    return lines[0]


class Graphs:
    """Runs ``step`` as a graph once it is warm. ``required``: a capture that fails ends the run; else it is
    reported, and none is used.
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
        """How many sizes of batch have a graph."""
        return sum(graph.replay is not None for graph in self._graphs.values())

    def forget(self) -> None:
        """Drop all graphs: what they read and write is no longer where it was."""
        self._graphs.clear()

    def run(self, key: Hashable, inputs: Inputs, steady: bool) -> Tensor:
        """Run an iteration and return its losses. Not ``steady``: the host has a say in it, so no graph can
        hold it.
        """
        if not steady and self._graphs:
            self._log_once("no CUDA graph while the replay pools hold images of several sizes")
        if self.off or not steady:
            return self._step(inputs)
        if key not in self._graphs and len(self._graphs) >= MOST_GRAPHS:
            self._log_once(
                f"more than {MOST_GRAPHS} sizes of batch: those that come later run without a CUDA graph"
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
        """Return what replays an iteration of this size, None where it cannot be captured. Raises UserError
        there if it must.
        """
        # The numbers lie in the same place for every batch of this size; images are copied to where the
        # graph reads them.
        own = replace(inputs, A=inputs.A.clone(), B=inputs.B.clone())
        try:
            replay, losses = self._capture(lambda: self._step(own))
        # Whatever a library does that a graph cannot hold: named, and the iteration runs without one.
        except BaseException as error:
            self._on_failure()
            # None is replayed from now on: the memory of those from before is for iterations without one.
            self._graphs.clear()
            if isinstance(error, NotRestoredError) or not isinstance(error, Exception):
                raise
            self.off = f"{type(error).__name__}: {_first_line(error)}"
            if self._required:
                raise UserError(f"--graph on: an iteration cannot be captured: {self.off}") from error
            self._log(
                f"no CUDA graph: an iteration cannot be captured ({self.off}); training goes on without"
            )
            return None

        def run(inputs: Inputs) -> Tensor:
            own.A.copy_(inputs.A)
            own.B.copy_(inputs.B)
            replay()
            return losses.clone()

        return run

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            self._logged.add(text)
            self._log(text)


def key_of(inputs: Inputs, nets: Iterable[nn.Module]) -> Hashable:
    """Return what one graph is good for: sizes and dtypes of what it reads, which parameters of ``nets`` are
    trained, and whether somebody listens to them.
    """

    def kind(t: Tensor) -> Hashable:
        return tuple(t.shape), t.dtype

    numbers = tuple((name, kind(t)) for name, t in inputs.numbers.items())
    hooked, trained = False, []
    for net in nets:
        trained += [p.requires_grad for p in net.parameters()]
        hooked = hooked or any(map(has_hooks, net.modules()))
    return kind(inputs.A), kind(inputs.B), numbers, hooked, tuple(trained)
