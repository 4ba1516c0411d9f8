"""One training step of any provider as a chrome trace, and tables of it: the costliest kernels, and launches
by part.

    python scripts/profile_step.py --provider ours_compiled

On a GPU kernels are the device's; without one the processor's operators stand for them, by the time that they
themselves take. Parts: G forward, G backward, D (both directions), and the rest, which is Adam, the pools and
copies. ``trace.json.gz`` opens in a browser's tracing page, and ``profile.json`` is what ``bench/roofline.py
--profile`` reads.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.machine import DEVICE, machine
from bench.providers import PROVIDERS, plain_networks, train_step
from bench.roofline import measured_chip
from bench.step_work import step_work, total
from bench.timing import Unserved
from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch

PARTS = ("G forward", "G backward", "D", "rest")
PHASE, STEP = "discriminators' phase", "training step"
WARM_UPS = 4
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
COSTLIEST = 10


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


def intervals(trace: dict[str, Any]) -> list[Interval]:
    """Return the events of a chrome trace with their nesting, each thread's in the order of time."""
    found = [
        Interval(
            e["name"],
            e.get("cat", ""),
            float(e["ts"]),
            float(e["ts"]) + float(e.get("dur", 0)),
            e.get("tid"),
            e.get("args", {}),
        )
        for e in trace["traceEvents"]
        if e.get("ph") == "X"
    ]
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


def analysed(trace: dict[str, Any]) -> Profile:
    """Return what a trace of one step says. Raises ValueError for a trace without one."""
    events = intervals(trace)
    steps = [e for e in events if e.name == STEP and e.kind == "user_annotation"]
    if not steps:
        raise ValueError("the trace has no training step")
    begin, finish = steps[-1].start, steps[-1].end
    operators = [e for e in events if e.kind == "cpu_op" and begin <= e.start <= finish]
    work = [e for e in events if e.kind in DEVICE_WORK]
    on_gpu = bool(work)
    launched_by = {
        e.args["correlation"]: e
        for e in events
        if e.kind in ("cuda_runtime", "cuda_driver") and "correlation" in e.args
    }
    by_id = {e.args["External id"]: e for e in operators if "External id" in e.args}
    discriminators = [e.start for e in events if e.name == PHASE and e.start >= begin]
    optimizers = [(e.start, e.end) for e in events if e.name.startswith("Optimizer.step")]
    done: list[tuple[Interval, Interval | None, Interval | None]] = []
    if on_gpu:
        for event in work:
            launch = launched_by.get(event.args.get("correlation"))
            if launch is None or begin <= launch.start <= finish:
                done.append((event, by_id.get(event.args.get("External id")), launch))
    else:
        done = [(e, e, e) for e in operators if not e.name.startswith("autograd::")]
    callers = {id(e.inside[-1]) for e in operators if e.inside}
    kernels: defaultdict[str, float] = defaultdict(float)
    launches, seconds = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0.0)
    counted: Counter[str] = Counter()
    found: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for event, operator, launch in done:
        part = part_of(launch, discriminators, optimizers)
        kernels[event.name] += event.own * 1e-6
        counted[event.name] += 1
        # On a CPU an operator that calls others has time of its own, but is no launch.
        launches[part] += int(on_gpu or id(event) not in callers)
        seconds[part] += event.own * 1e-6
        if operator is not None:
            shapes = flattened(operator.args.get("Input Dims", []))
            key = (operator.name, json.dumps(shapes), is_backward(operator))
            entry = found.setdefault(
                key, {"name": key[0], "shapes": shapes, "backward": key[2], "seconds": 0.0, "calls": 0}
            )
            entry["seconds"] += event.own * 1e-6
            entry["calls"] += 1
    ends = [e.end for e, _, _ in done]
    step = (max([finish, *ends]) - begin) * 1e-6
    ordered = {
        name: (kernels[name], counted[name]) for name in sorted(kernels, key=lambda name: -kernels[name])
    }
    return Profile(ordered, sorted(found.values(), key=lambda e: -e["seconds"]), launches, seconds, step)


def is_backward(event: Interval) -> bool:
    return any(outer.name.startswith("autograd::engine::evaluate_function") for outer in event.inside)


def part_of(
    launch: Interval | None, discriminators: list[float], optimizers: list[tuple[float, float]]
) -> str:
    """Return the part of the step that ``launch`` (the call, not the kernel) belongs to."""
    if launch is None or any(start <= launch.start <= end for start, end in optimizers):
        return "rest"
    if discriminators and launch.start >= min(discriminators):
        return "D"
    inside = [outer.name for outer in launch.inside]
    if any(name.startswith("autograd::engine::evaluate_function") for name in inside):
        return "G backward"
    return "G forward"


def flattened(shapes: Any) -> list[list[int]]:
    """Return every shape in a trace's "Input Dims", those in lists of tensors too."""
    if isinstance(shapes, list) and shapes and all(isinstance(n, int) for n in shapes):
        return [shapes]
    return [shape for each in shapes for shape in flattened(each)] if isinstance(shapes, list) else []


def tables(profile: Profile, floor: float, chip: str) -> Iterator[str]:
    """Yield what is printed: the costliest kernels beside the step and its floor, and launches and time by
    part.
    """
    what = "kernel" if DEVICE == "cuda" else "operator, without those that it calls"
    busy = sum(profile.seconds.values())
    yield f"The step took {profile.step * 1e3:.2f} ms under the profiler, {busy * 1e3:.2f} ms of it at work."
    yield f"Its floor is {floor * 1e3:.3g} ms ({chip})."
    yield f"\n{what:<72}{'calls':>7}{'ms':>10}{'of the work':>13}{'of the floor':>14}"
    for name, (seconds, calls) in list(profile.kernels.items())[:COSTLIEST]:
        yield (
            f"{name[:70]:<72}{calls:>7}{seconds * 1e3:>10.3f}{100 * seconds / busy:>11.1f}"
            f" %{100 * seconds / floor:>12.1f} %"
        )
    yield f"\n{'part':<14}{'launches' if DEVICE == 'cuda' else 'operators':>10}{'ms':>10}"
    for part in PARTS:
        yield f"{part:<14}{profile.launches[part]:>10}{profile.seconds[part] * 1e3:>10.2f}"
    yield f"{'in all':<14}{sum(profile.launches.values()):>10}{busy * 1e3:>10.2f}"


def traced(
    provider: str, size: int, batch: int, config: ModelConfig, identity: bool, path: Path
) -> tuple[dict[str, Any], str]:
    """Run the provider until it is warm, then one step under the profiler; return the trace, which is written
    to ``path``.
    """
    loss = LossConfig() if identity else LossConfig(lambda_identity=0.0)
    # Not as a CUDA graph: what a graph launches belongs to no operator and no part. The kernels are the same.
    step = train_step(
        provider, plain_networks(config), DEVICE, loss, config=config, options=EngineConfig(graph="off")
    )

    def marked(f: Callable[..., Any]) -> Callable[..., Any]:
        def g(*arguments: Any) -> Any:
            with torch.profiler.record_function(PHASE):
                return f(*arguments)

        return g

    step.mark(marked)
    made = [random_batch(size, Plan(0, 100, 100, batch), n) for n in range(2)]
    batches = [Batch(b.A.to(DEVICE), b.B.to(DEVICE), b.paths_A, b.paths_B, b.samples) for b in made]
    for n in range(WARM_UPS):
        step.run(batches[n % 2])
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (
        DEVICE == "cuda"
    )
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profile:
        with torch.profiler.record_function(STEP):
            step.run(batches[0])
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    profile.export_chrome_trace(str(path))
    with gzip.open(path, "rt") as file:
        return json.load(file), step.precision


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/profile_step.py."""
    parser = argparse.ArgumentParser(prog="profile_step.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--provider", choices=PROVIDERS, default="ours_compiled")
    parser.add_argument(
        "--size",
        type=int,
        default=256 if DEVICE == "cuda" else 128,
        help="side of the pictures (default: %(default)s)",
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--blocks", type=int, default=9, help="residual blocks of a generator (default: %(default)s)"
    )
    parser.add_argument(
        "--no_identity", "--no-identity", action="store_true", help="without the identity loss"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: profile/PROVIDER")
    options = parser.parse_args(arguments)
    options.output = options.output or Path("profile") / options.provider
    if options.size < 24 or options.size % 4 or min(options.batch, options.blocks) < 1:
        parser.error("--size must be a multiple of 4, at least 24, --batch and --blocks at least 1")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        PROVIDERS[options.provider].require(DEVICE)
    except OSError as error:
        parser.error(f"{options.output}: cannot write there: {error.strerror}")
    except Unserved as reason:
        parser.error(f"{options.provider}: {reason}")
    config = ModelConfig(netG=f"resnet_{options.blocks}blocks")
    print(
        f"{machine()['hardware']}: {PROVIDERS[options.provider].title}, {options.batch} of"
        f" {options.size}x{options.size}",
        flush=True,
    )
    trace, precision = traced(
        options.provider,
        options.size,
        options.batch,
        config,
        not options.no_identity,
        options.output / "trace.json.gz",
    )
    profile = analysed(trace)
    chip = measured_chip(precision)
    floor = total(
        step_work(options.size, options.batch, options.blocks, not options.no_identity, precision), chip, 0
    )
    print("\n".join(tables(profile, floor, f"ceilings {chip.source}, without launches")))
    about = {
        "machine": machine(),
        "provider": options.provider,
        "size": options.size,
        "batch": options.batch,
        "blocks": options.blocks,
    }
    about |= {
        "identity": not options.no_identity,
        "precision": precision,
        "step": profile.step,
        "floor": floor,
    }
    about |= {
        "launches": profile.launches,
        "seconds": profile.seconds,
        "kernels": profile.kernels,
        "operators": profile.operators,
    }
    (options.output / "profile.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"\nwritten to {options.output}: trace.json.gz, profile.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
