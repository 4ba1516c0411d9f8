"""Time the providers of a group against each other.

The timer waits for the device. Several inputs are used in turn, so that they are not in the L2 cache. Small
operators run without launches from Python. All providers of a group take turns, in a new random order in
every round.
"""

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
# A provider counts as warm once a run is no longer a tenth faster than the best one before it, and in any
# case after this many runs or seconds.
STILL_FASTER, MAX_WARM_UPS, MAX_WARM_UP_SECONDS = 0.9, 10, 10.0
LEAST_ROUNDS = 3


def synchronised() -> float:
    """Wait for the device, then return the time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """The timer for pytest-benchmark.

    It replays recorded readings one by one while there are any, and otherwise reads ``synchronised``.
    """

    def __init__(self) -> None:
        self.readings: list[float] = []

    def play(self, intervals: list[tuple[float, float]]) -> None:
        self.readings = []
        # Readings are popped from the end, so the first one is stored last.
        for start, end in reversed(intervals):
            self.readings += [end, start]

    def __call__(self) -> float:
        if self.readings:
            return self.readings.pop()
        return synchronised()


clock = Clock()


class Unavailable(Exception):  # noqa: N818 - a reason, not a fault
    """Raised if a provider is not available on this machine or for this size.

    The message gives the reason.
    """


@dataclass
class Entrant:
    """One provider, ready to run.

    ``run`` runs one round, ``check`` raises AssertionError if the timed runs computed wrong results, and
    ``info`` is stored with the results.
    """

    run: Callable[[], Any]
    check: Callable[[], None] = lambda: None
    info: dict[str, Any] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    """Seconds of each run before the first round, including the very first run."""
    cold: bool = False
    """Whether it is timed without warming up."""
    before: Callable[[], Any] = lambda: None
    """Called before each timed run, as ``after`` is called after it. They start and end work that must not
    continue while other providers run.
    """
    after: Callable[[], Any] = lambda: None


Builders = dict[str, Callable[[], Entrant]]


def builders_of(providers: Iterable[str], build: Callable[[str], Entrant]) -> Builders:
    """Return a builder for each of ``providers``, which calls ``build`` with its name."""
    return {name: partial(build, name) for name in providers}


@dataclass
class Outcome:
    """The result of one provider: one clock interval per round, or the reason why there are none."""

    intervals: list[tuple[float, float]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    skip_reason: str = ""
    error: Exception | None = None

    @property
    def seconds(self) -> list[float]:
        return [end - start for start, end in self.intervals]


def warm_up(run: Callable[[], Any], history: Sequence[float] = ()) -> list[float]:
    """Call ``run`` until it no longer gets faster, and return the seconds of each run.

    They are preceded by those of ``history``.
    """
    seconds = list(history)

    def faster_still() -> bool:
        if len(seconds) >= MAX_WARM_UPS or sum(seconds[1:]) > MAX_WARM_UP_SECONDS:
            return False
        compared = seconds
        if len(seconds) > 2:
            # The very first run compiles and allocates, so it is not compared with.
            compared = seconds[1:]
        return compared[-1] < STILL_FASTER * min(compared[:-1])

    while len(seconds) < 2 or faster_still():
        start = synchronised()
        run()
        seconds.append(synchronised() - start)
    return seconds


def race(
    builders: Builders, rounds: int, seconds: float = float("inf"), seed: int | None = None
) -> dict[str, Outcome]:
    """Time all providers side by side and return their outcomes by name.

    Each provider is built and warmed up, runs once per round in a new random order, and is checked at the
    end. Timing stops after ``rounds``, or after ``seconds`` of rounds, but not before LEAST_ROUNDS. If a
    provider fails at any point, including its check, its outcome has an error and no intervals.
    """
    draw, outcomes = random.Random(seed), {name: Outcome() for name in builders}
    entrants: dict[str, Entrant] = {}

    def failed(name: str, error: Exception) -> None:
        entrants.pop(name, None)
        if isinstance(error, Unavailable):
            outcomes[name] = Outcome(skip_reason=str(error))
        else:
            outcomes[name] = Outcome(error=error)

    for name, build in builders.items():
        try:
            entrants[name] = build()
            if not entrants[name].cold:
                entrants[name].history = warm_up(entrants[name].run, entrants[name].history)
        # An exception only affects the provider that raised it: the others are still timed.
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
    """Run one round and return its start and end times."""
    entrant.before()
    start = synchronised()
    entrant.run()
    end = synchronised()
    entrant.after()
    return start, end


class Race(Protocol):
    """A function that times all providers of a group and reports the one that the current bench is for.

    All providers are timed when the first bench of the group calls it; later calls only report. ``builders``
    contains every provider, the most informative first. Providers that pytest has not selected are left out,
    as are those for which ``costs`` is more than the seconds left in the budget. Timing takes at most
    ``rounds`` rounds and about ``seconds`` seconds.
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
    """Return the number of inputs to use in turn so that none is still in the L2 cache.

    Each input has ``bytes_each`` bytes. Without a GPU there are 2.
    """
    if device != "cuda":
        return 2
    return max(2, -(-BYTES_PAST_L2 // bytes_each))


class Steps:
    """Functions that are called one after the other in each round; on a GPU they become one CUDA graph.

    ``results`` contains the return values of the last round.
    """

    def __init__(self, make: Callable[[], list[Callable[[], Any]]], device: str) -> None:
        self.results: list[Any] = []
        self._run: Callable[[], None] = self._once
        if device != "cuda":
            self._todo = make()
            return
        # A backward pass runs on the stream of its forward pass, so both must use the stream that is
        # captured.
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
