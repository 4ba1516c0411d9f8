"""Analyse a Chrome trace of one training step.

The result contains the step's kernels, its operators, and the parts of the step that launched them. The parts
are G forward, G backward, D (both directions), and the rest: Adam, the pools and copies.
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
    """An event of a trace, with its times in microseconds.

    ``self_time`` is its duration without that of the events inside it.
    """

    name: str
    kind: str
    start: float
    end: float
    thread: Any
    args: dict[str, Any]
    self_time: float = 0.0
    inside: list[Interval] = field(default_factory=list)
    """The events that contain this one, outermost first."""

    @classmethod
    def of(cls, event: dict[str, Any]) -> Interval:
        start = float(event["ts"])
        end = start + float(event.get("dur", 0))
        return cls(event["name"], event.get("cat", ""), start, end, event.get("tid"), event.get("args", {}))

    @property
    def is_backward(self) -> bool:
        return any(outer.name.startswith(BACKWARD) for outer in self.inside)


def intervals(trace: dict[str, Any]) -> list[Interval]:
    """Return the events of a Chrome trace, each with the events of its thread that contain it."""
    all_events = [Interval.of(event) for event in trace["traceEvents"] if event.get("ph") == "X"]
    threads: dict[Any, list[Interval]] = {}
    for event in all_events:
        threads.setdefault((event.kind in DEVICE_WORK, event.thread), []).append(event)
    for events in threads.values():
        events.sort(key=lambda e: (e.start, -e.end))
        open_now: list[Interval] = []
        for event in events:
            while open_now and open_now[-1].end <= event.start:
                open_now.pop()
            event.self_time = event.end - event.start
            if open_now:
                open_now[-1].self_time -= min(event.end, open_now[-1].end) - event.start
            event.inside = list(open_now)
            open_now.append(event)
    return all_events


@dataclass
class Profile:
    """The profile of one step.

    ``kernels`` maps the name of each kernel to its seconds and launches. ``operators`` lists seconds and
    calls by operator and shapes. ``launches`` and ``seconds`` are totals by part of the step.
    """

    kernels: dict[str, tuple[float, int]]
    operators: list[dict[str, Any]]
    launches: dict[str, int]
    seconds: dict[str, float]
    step: float
    """Seconds of the whole step, from its start to the end of its last work."""


@dataclass
class WorkItem:
    """A piece of work, the operator it belongs to, and the call that launched it.

    Without a GPU, all three are the same operator.
    """

    work: Interval
    operator: Interval | None
    launch: Interval | None


def analyse(trace: dict[str, Any]) -> Profile:
    """Return the profile of the training step in a trace. Raises ValueError if the trace contains none."""
    events = intervals(trace)
    step = _step_of(events)
    operators = [e for e in events if e.kind == "cpu_op" and step.start <= e.start <= step.end]
    work = [e for e in events if e.kind in DEVICE_WORK]
    callers = set()
    if work:
        items = list(_work_on_a_gpu(events, step, operators, work))
    else:
        items = [WorkItem(e, e, e) for e in operators if not e.name.startswith("autograd::")]
        # An operator that calls others takes time itself, but does not count as a launch.
        callers = {id(e.inside[-1]) for e in operators if e.inside}
    discriminators = [e.start for e in events if e.name == PHASE and e.start >= step.start]
    optimizers = [(e.start, e.end) for e in events if e.name.startswith("Optimizer.step")]
    launches, seconds, end = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0), step.end
    for item in items:
        part = part_of(item.launch, discriminators, optimizers)
        seconds[part] += item.work.self_time * 1e-6
        if id(item.work) not in callers:
            launches[part] += 1
        end = max(end, item.work.end)
    return Profile(_by_kernel(items), _by_operator(items), launches, seconds, (end - step.start) * 1e-6)


def _step_of(events: Sequence[Interval]) -> Interval:
    steps = [e for e in events if e.name == STEP and e.kind == "user_annotation"]
    if not steps:
        raise ValueError("the trace contains no training step")
    return steps[-1]


def _work_on_a_gpu(
    events: Sequence[Interval], step: Interval, operators: Sequence[Interval], work: Sequence[Interval]
) -> Iterator[WorkItem]:
    """Yield the work that was launched during ``step``, and work whose launch is unknown."""
    by_correlation = {}
    for event in events:
        if event.kind in LAUNCHING and "correlation" in event.args:
            by_correlation[event.args["correlation"]] = event
    by_id = {e.args["External id"]: e for e in operators if "External id" in e.args}
    for event in work:
        launch = by_correlation.get(event.args.get("correlation"))
        if launch is None or step.start <= launch.start <= step.end:
            yield WorkItem(event, by_id.get(event.args.get("External id")), launch)


def _by_kernel(items: Sequence[WorkItem]) -> dict[str, tuple[float, int]]:
    """Return seconds and launches by kernel name, the costliest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    launches: Counter[str] = Counter()
    for item in items:
        seconds[item.work.name] += item.work.self_time * 1e-6
        launches[item.work.name] += 1
    costliest = sorted(seconds, key=lambda name: -seconds[name])
    return {name: (seconds[name], launches[name]) for name in costliest}


def _by_operator(items: Sequence[WorkItem]) -> list[dict[str, Any]]:
    """Return seconds and calls by operator and shapes, the costliest first."""
    entries: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for item in items:
        operator = item.operator
        if operator is None:
            continue
        shapes, backward = flatten(operator.args.get("Input Dims", [])), operator.is_backward
        entry = entries.setdefault(
            (operator.name, json.dumps(shapes), backward),
            {"name": operator.name, "shapes": shapes, "backward": backward, "seconds": 0.0, "calls": 0},
        )
        entry["seconds"] += item.work.self_time * 1e-6
        entry["calls"] += 1
    return sorted(entries.values(), key=lambda entry: -entry["seconds"])


def part_of(
    launch: Interval | None, discriminators: list[float], optimizers: list[tuple[float, float]]
) -> str:
    """Return the part of the step to which ``launch`` belongs.

    The part is determined by the time of the launching call, not by when its kernel ran.
    """
    if launch is None or any(start <= launch.start <= end for start, end in optimizers):
        return "rest"
    if discriminators and launch.start >= min(discriminators):
        return "D"
    if launch.is_backward:
        return "G backward"
    return "G forward"


def flatten(shapes: Any) -> list[list[int]]:
    """Return all shapes in a trace's "Input Dims", including those in lists of tensors."""
    if not isinstance(shapes, list):
        return []
    if shapes and all(isinstance(n, int) for n in shapes):
        return [shapes]
    flat = []
    for item in shapes:
        flat += flatten(item)
    return flat
