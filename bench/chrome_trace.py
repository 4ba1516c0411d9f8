"""What a chrome trace of one training step says: kernels, operators, and the parts of the step that launched
them.

Parts: G forward, G backward, D (both directions), and the rest, which is Adam, the pools and copies.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PARTS = ("G forward", "G backward", "D", "rest")
PHASE, STEP = "discriminators' phase", "training step"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHING = ("cuda_runtime", "cuda_driver")
BACKWARD = "autograd::engine::evaluate_function"


@dataclass
class Interval:
    """An event of a trace, in microseconds: ``own`` is its time without the events inside it."""

    name: str
    kind: str
    start: float
    end: float
    thread: Any
    args: dict[str, Any]
    own: float = 0.0
    inside: list[Interval] = field(default_factory=list)
    """The events that it lies in, the outermost first."""

    @classmethod
    def of(cls, event: dict[str, Any]) -> Interval:
        start = float(event["ts"])
        end = start + float(event.get("dur", 0))
        return cls(event["name"], event.get("cat", ""), start, end, event.get("tid"), event.get("args", {}))

    @property
    def is_backward(self) -> bool:
        return any(outer.name.startswith(BACKWARD) for outer in self.inside)


def intervals(trace: dict[str, Any]) -> list[Interval]:
    """Return the events of a chrome trace with their nesting, each thread's in the order of time."""
    found = [Interval.of(event) for event in trace["traceEvents"] if event.get("ph") == "X"]
    threads: dict[Any, list[Interval]] = {}
    for event in found:
        threads.setdefault((event.kind in DEVICE_WORK, event.thread), []).append(event)
    for events in threads.values():
        events.sort(key=lambda e: (e.start, -e.end))
        open_now: list[Interval] = []
        for event in events:
            while open_now and open_now[-1].end <= event.start:
                open_now.pop()
            event.own = event.end - event.start
            if open_now:
                open_now[-1].own -= min(event.end, open_now[-1].end) - event.start
            event.inside = list(open_now)
            open_now.append(event)
    return found


@dataclass
class Profile:
    """``kernels``: seconds and launches by name; ``operators``: seconds by operator and shapes; ``launches``
    and ``seconds`` by part.
    """

    kernels: dict[str, tuple[float, int]]
    operators: list[dict[str, Any]]
    launches: dict[str, int]
    seconds: dict[str, float]
    step: float
    """Seconds of the whole step, from its first operator to its last work done."""


@dataclass
class Done:
    """A piece of work, the operator that it is of, and the call that launched it: without a GPU all three are
    the operator.
    """

    work: Interval
    operator: Interval | None
    launch: Interval | None


def analysed(trace: dict[str, Any]) -> Profile:
    """Return what a trace of one step says. Raises ValueError for a trace without one."""
    events = intervals(trace)
    step = _step_of(events)
    operators = [e for e in events if e.kind == "cpu_op" and step.start <= e.start <= step.end]
    work = [e for e in events if e.kind in DEVICE_WORK]
    callers = set()
    if work:
        done = list(_done_on_a_gpu(events, step, operators, work))
    else:
        done = [Done(e, e, e) for e in operators if not e.name.startswith("autograd::")]
        # An operator that calls others has time of its own, but is no launch.
        callers = {id(e.inside[-1]) for e in operators if e.inside}
    discriminators = [e.start for e in events if e.name == PHASE and e.start >= step.start]
    optimizers = [(e.start, e.end) for e in events if e.name.startswith("Optimizer.step")]
    launches, seconds, end = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0), step.end
    for each in done:
        part = part_of(each.launch, discriminators, optimizers)
        seconds[part] += each.work.own * 1e-6
        if id(each.work) not in callers:
            launches[part] += 1
        end = max(end, each.work.end)
    return Profile(_by_kernel(done), _by_operator(done), launches, seconds, (end - step.start) * 1e-6)


def _step_of(events: Sequence[Interval]) -> Interval:
    steps = [e for e in events if e.name == STEP and e.kind == "user_annotation"]
    if not steps:
        raise ValueError("the trace has no training step")
    return steps[-1]


def _done_on_a_gpu(
    events: Sequence[Interval], step: Interval, operators: Sequence[Interval], work: Sequence[Interval]
) -> Iterator[Done]:
    """Yield the work that was launched within ``step``, or of which nobody knows when."""
    by_correlation = {}
    for event in events:
        if event.kind in LAUNCHING and "correlation" in event.args:
            by_correlation[event.args["correlation"]] = event
    by_id = {e.args["External id"]: e for e in operators if "External id" in e.args}
    for event in work:
        launch = by_correlation.get(event.args.get("correlation"))
        if launch is None or step.start <= launch.start <= step.end:
            yield Done(event, by_id.get(event.args.get("External id")), launch)


def _by_kernel(done: Sequence[Done]) -> dict[str, tuple[float, int]]:
    """Return seconds and launches by name, the costliest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for each in done:
        seconds[each.work.name] += each.work.own * 1e-6
        launches[each.work.name] += 1
    costliest = sorted(seconds, key=lambda name: -seconds[name])
    return {name: (seconds[name], launches[name]) for name in costliest}


def _by_operator(done: Sequence[Done]) -> list[dict[str, Any]]:
    """Return seconds and calls by operator and shapes, the costliest first."""
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for each in done:
        operator = each.operator
        if operator is None:
            continue
        shapes, backward = flattened(operator.args.get("Input Dims", [])), operator.is_backward
        entry = found.setdefault(
            (operator.name, json.dumps(shapes), backward),
            {"name": operator.name, "shapes": shapes, "backward": backward, "seconds": 0.0, "calls": 0},
        )
        entry["seconds"] += each.work.own * 1e-6
        entry["calls"] += 1
    return sorted(found.values(), key=lambda entry: -entry["seconds"])


def part_of(
    launch: Interval | None, discriminators: list[float], optimizers: list[tuple[float, float]]
) -> str:
    """Return the part of the step that ``launch`` (the call, not the kernel) belongs to."""
    if launch is None or any(start <= launch.start <= end for start, end in optimizers):
        return "rest"
    if discriminators and launch.start >= min(discriminators):
        return "D"
    if launch.is_backward:
        return "G backward"
    return "G forward"


def flattened(shapes: Any) -> list[list[int]]:
    """Return every shape in a trace's "Input Dims", those in lists of tensors too."""
    if not isinstance(shapes, list):
        return []
    if shapes and all(isinstance(n, int) for n in shapes):
        return [shapes]
    found = []
    for each in shapes:
        found += flattened(each)
    return found
