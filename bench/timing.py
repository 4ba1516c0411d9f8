"""How things are timed: with a device that has finished, inputs that come round past the L2 cache, small
operators without launches from Python, and all providers of a group in turns whose order is drawn anew in
every round."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from bench.machine import conditions

BYTES_PAST_L2 = 256 << 20
# A provider is warm when a run is no longer a tenth faster than the best before it; after so many runs or
# seconds anyway.
STILL_FASTER, MOST_WARM_UPS, MOST_WARM_UP_SECONDS = 0.9, 10, 10.0
LEAST_ROUNDS = 3


def synchronised() -> float:
    """The timer: it waits for the device before it reads the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """The timer that pytest-benchmark is given: readings taken before, one by one, while there are any left;
    else ``synchronised``.
    """

    def __init__(self) -> None:
        self.readings: list[float] = []

    def play(self, intervals: list[tuple[float, float]]) -> None:
        self.readings = []
        # The last reading of all is popped last.
        for start, end in reversed(intervals):
            self.readings += [end, start]

    def __call__(self) -> float:
        if self.readings:
            return self.readings.pop()
        return synchronised()


clock = Clock()


class Unserved(Exception):  # noqa: N818 - a reason, not a fault
    """A provider that this machine or size cannot have; the message says why."""


@dataclass
class Entrant:
    """One provider, ready to run.

    ``run`` is one round, ``check`` raises AssertionError where what was timed is wrong, ``info`` goes into
    the results.
    """

    run: Callable[[], Any]
    check: Callable[[], None] = lambda: None
    info: dict[str, Any] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    """Seconds of the runs before the first round, the first of all included."""
    cold: bool = False
    """Whether it is timed as it is: not warmed up."""
    before: Callable[[], Any] = lambda: None
    """Called before each timed run, and ``after`` after it: for what must not work on while others have their
    turn.
    """
    after: Callable[[], Any] = lambda: None


Builders = dict[str, Callable[[], Entrant]]


def builders_of(providers: Iterable[str], build: Callable[[str], Entrant]) -> Builders:
    """Return what builds each of ``providers``: ``build`` of its name."""
    return {name: partial(build, name) for name in providers}


@dataclass
class Outcome:
    """What came of one provider: intervals on the clock, one a round; or why there are none."""

    intervals: list[tuple[float, float]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    why_not: str = ""
    error: Exception | None = None

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in self.intervals]


def warmed_up(run: Callable[[], Any], history: Sequence[float] = ()) -> list[float]:
    """Run until it gets no faster, and return the seconds of each run, after those of ``history``."""
    seconds = list(history)

    def faster_still() -> bool:
        if len(seconds) >= MOST_WARM_UPS or sum(seconds[1:]) > MOST_WARM_UP_SECONDS:
            return False
        known = seconds
        if len(seconds) > 2:
            # The first run of all, which compiles and allocates, is no run to compare with.
            known = seconds[1:]
        return known[-1] < STILL_FASTER * min(known[:-1])

    while len(seconds) < 2 or faster_still():
        start = synchronised()
        run()
        seconds.append(synchronised() - start)
    return seconds


def race(
    builders: Builders, rounds: int, seconds: float = float("inf"), seed: int | None = None
) -> dict[str, Outcome]:
    """Time every provider side by side: built, warmed up, then once in each round, in an order drawn anew;
    ``check`` afterwards.

    Stops after ``rounds``, or after ``seconds`` of rounds, but not before LEAST_ROUNDS. A provider that fails
    anywhere, its check included, has its error and no interval.
    """
    draw, outcomes = random.Random(seed), {name: Outcome() for name in builders}
    entrants: dict[str, Entrant] = {}

    def failed(name: str, error: Exception) -> None:
        entrants.pop(name, None)
        if isinstance(error, Unserved):
            outcomes[name] = Outcome(why_not=str(error))
        else:
            outcomes[name] = Outcome(error=error)

    for name, build in builders.items():
        try:
            entrants[name] = build()
            if not entrants[name].cold:
                entrants[name].history = warmed_up(entrants[name].run, entrants[name].history)
        # Whatever a provider raises is its own result: the others are timed all the same.
        except Exception as error:
            failed(name, error)
    gc.collect()
    end = time.monotonic() + seconds
    for number in range(rounds):
        if number >= min(LEAST_ROUNDS, rounds) and time.monotonic() > end:
            break
        for name in draw.sample(list(entrants), len(entrants)):
            try:
                outcomes[name].intervals.append(_timed(entrants[name]))
            except Exception as error:
                failed(name, error)
    now = conditions()
    for name, entrant in list(entrants.items()):
        try:
            entrant.check()
        except Exception as error:
            failed(name, error)
            continue
        outcomes[name].info = {**entrant.info, "warm_ups": len(entrant.history), "conditions": now}
        if entrant.history:
            outcomes[name].info["first_s"] = entrant.history[0]
    return outcomes


def _timed(entrant: Entrant) -> tuple[float, float]:
    """Run one round and return when it began and ended."""
    entrant.before()
    start = synchronised()
    entrant.run()
    end = synchronised()
    entrant.after()
    return start, end


class Race(Protocol):
    """Time all providers of the group side by side when the first of them is asked for, and report the one
    that is asked for now.

    ``builders``: of every provider, the most telling first; those that are not selected are left out, and
    those that ``costs`` more seconds than are left of the budget. ``rounds`` at most, in ``seconds``.
    """

    def __call__(
        self,
        group: str,
        builders: Builders,
        rounds: int,
        seconds: float = ...,
        costs: Callable[[str], float] = ...,
    ) -> None: ...


def rotations(bytes_each: int, device: str) -> int:
    """Return how many inputs of so many bytes it takes to be past the L2 cache when the first one's turn
    comes again.
    """
    if device != "cuda":
        return 2
    return max(2, -(-BYTES_PAST_L2 // bytes_each))


class Steps:
    """Functions that one round calls in turn; on a GPU one CUDA graph of them all. ``results`` are what each
    gave in the last round.
    """

    def __init__(self, make: Callable[[], list[Callable[[], Any]]], device: str) -> None:
        self.results: list[Any] = []
        self._run: Callable[[], None] = self._once
        if device != "cuda":
            self._todo = make()
            return
        # A backward runs on the stream of its forward, so that must be the one that is captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._todo = make()
            for _ in range(2):
                self._once()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self._once()
        self._run = graph.replay

    def _once(self) -> None:
        self.results = [step() for step in self._todo]

    def __call__(self) -> None:
        self._run()
