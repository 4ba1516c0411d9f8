"""Calculate the floor of a training step, which is a lower bound on its time, layer by layer.

    python -m bench.roofline                                            # this machine, ceilings measured now
    python -m bench.roofline --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.1  # another chip
    python -m bench.roofline --profile profile/profile.json            # measured times relative to the floor

The floor of a layer on a chip is the larger of the times for its arithmetic and for its memory traffic
(bench/step_work.py). The floor of the step is the sum over all layers, plus the launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.step_work import ITEM, Chip, Work, step_work


def count_launches(size: int, batch: int, blocks: int, identity: bool, precision: str) -> int:
    """Return the number of Triton launches and ATen calls in one training step of fastcyclegan.

    They are counted in a dry run on the CPU.
    """
    from bench.counts import step_counts

    counts = step_counts("ours", size, batch, blocks, identity, precision)
    return counts.launches.total() + counts.aten.total()


def measured_chip(precision: str) -> Chip:
    """Measure this machine's ceilings in the same way as bench_ceilings.py, and return the best values."""
    from bench.bench_ceilings import make_builders
    from bench.machine import hardware
    from bench.timing import race

    builders = make_builders()
    names = ("copy", "launch", f"matmul {precision}")
    outcomes = race({name: builders[name] for name in builders if name in names}, 10, 5)
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    copy, launch, matmul = (outcomes[name] for name in names)
    return Chip(
        matmul.info["flops"] / min(matmul.seconds),
        copy.info["bytes"] / min(copy.seconds),
        min(launch.seconds) / launch.info["operations"],
        f"measured on {hardware()}",
    )


# --- The table ----------------------------------------------------------------------------------------------


def lines(
    works: list[Work], chip: Chip, launches: int, measured: dict[str, float] | None = None
) -> Iterator[str]:
    """Yield the lines of the table, the costliest layer first.

    ``measured`` contains the measured seconds by layer and pass, if there is a profile.
    """
    rates = f"{chip.matrix / 1e12:.3g} TFLOP/s, {chip.bandwidth / 1e9:.4g} GB/s"
    yield f"Ceilings ({chip.source}): {rates}, {chip.launch * 1e6:.3g} us per launch"
    heads = f"{'layer':<52}{'pass':<22}{'calls':>6}{'GFLOP':>10}{'MB':>10}{'floor ms':>10}  {'bound':<11}"
    if measured is not None:
        heads += f"{'measured':>10}{'vs. floor':>12}"
    yield heads
    all_flops = all_bytes = all_floors = 0.0
    for work in sorted(works, key=lambda w: -w.floor(chip)):
        flops, moved, floor = work.calls * work.flops, work.calls * work.bytes, work.floor(chip)
        cells = f"{work.layer:<52}{work.phase:<22}{work.calls:>6}{flops / 1e9:>10.1f}{moved / 1e6:>10.1f}"
        cells += f"{floor * 1e3:>10.4g}  {work.bound(chip):<11}"
        if measured is not None:
            cells += _relative_to_floor(measured.get(key_of(work), 0.0), floor)
        yield cells
        all_flops += flops
        all_bytes += moved
        all_floors += floor
    arithmetic = f"{all_flops / 1e12:.3f} TFLOP ({all_flops / chip.matrix * 1e3:.4g} ms)"
    yield f"total: {arithmetic}, {all_bytes / 1e9:.3f} GB ({all_bytes / chip.bandwidth * 1e3:.4g} ms)"
    launching = launches * chip.launch
    both = f"together {(all_floors + launching) * 1e3:.4g} ms"
    yield f"floor: {all_floors * 1e3:.4g} ms by layers; {launches} launches {launching * 1e3:.4g} ms; {both}"
    if measured is not None:
        yield (
            "measured: the backward of a convolution is one call, so its time is divided between both"
            " gradients and equal layers of other phases"
        )


def _relative_to_floor(seconds: float, floor: float) -> str:
    if not seconds:
        return ""
    return f"{seconds * 1e3:>8.4g} ms{seconds / floor:>11.2f}x"


def key_of(work: Work) -> str:
    return f"{work.layer}|{work.phase}"


def measured_by_layer(works: list[Work], events: list[dict[str, Any]]) -> dict[str, float]:
    """Return the measured seconds by layer and pass.

    ``events`` are the operators of a profile with their shapes (profile_step.py). A convolution is identified
    by the shapes of its input and weight. If several passes have the same shapes, its time is divided between
    them in proportion to their calls.
    """
    seconds: Counter[str] = Counter()
    for event in events:
        kinds = _works_of(event, works)
        calls = sum(work.calls for work in kinds)
        for work in kinds:
            seconds[key_of(work)] += event["seconds"] * work.calls / calls
    return dict(seconds)


def _works_of(event: dict[str, Any], works: list[Work]) -> list[Work]:
    """Return the entries of ``works`` to which an event of a profile can belong."""
    shapes = set()
    for shape in event["shapes"]:
        if isinstance(shape, list) and all(isinstance(n, int) for n in shape):
            shapes.add(tuple(shape))
    kinds = []
    for work in works:
        is_backward = not work.phase.endswith("forward")
        if work.shapes and set(work.shapes) <= shapes and is_backward == event["backward"]:
            kinds.append(work)
    return kinds


# --- The command line ---------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """The settings that determine the work of a training step."""

    size: int = 256
    batch: int = 1
    blocks: int = 9
    identity: bool = True
    precision: str = "bf16"


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed options; the caller reports later errors through the parser."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--size", type=int, help="image size in pixels, a multiple of 4 (default: 256)")
    parser.add_argument("--batch", type=int, help="images per batch (default: 1)")
    parser.add_argument("--blocks", type=int, help="residual blocks per generator (default: 9)")
    parser.add_argument("--no_identity", action="store_true", help="train without the identity loss")
    parser.add_argument("--precision", choices=sorted(ITEM), help="precision of the step (default: bf16)")
    parser.add_argument(
        "--matrix_tflops", type=float, help="the chip's TFLOP/s for matrix products in this precision"
    )
    parser.add_argument(
        "--bandwidth_gbs",
        type=float,
        help="the chip's copy bandwidth in GB/s, counting bytes read and written",
    )
    parser.add_argument("--launch_us", type=float, help="the chip's microseconds per launch")
    parser.add_argument(
        "--launches", type=int, help="launches per step (default: counted in a step of fastcyclegan)"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        help="compare with a profile.json from scripts/profile_step.py; the step uses its settings",
    )
    return parser, parser.parse_args(arguments)


def _typed_chip(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Chip | None:
    typed = (options.matrix_tflops, options.bandwidth_gbs, options.launch_us)
    values = [value for value in typed if value is not None]
    if not values:
        return None
    if len(values) < len(typed) or not all(value > 0 for value in values):
        parser.error(
            "--matrix_tflops, --bandwidth_gbs and --launch_us must be given together, and be more than 0"
        )
    matrix, bandwidth, launch = values
    return Chip(matrix * 1e12, bandwidth * 1e9, launch * 1e-6, "typed in")


def _settings(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Settings:
    values: dict[str, Any] = {}
    for name in ("size", "batch", "blocks", "precision"):
        value = getattr(options, name)
        if value is not None:
            values[name] = value
    if options.no_identity:
        values["identity"] = False
    if options.profile and values:
        parser.error(
            "--profile sets the size, batch, blocks, identity loss and precision, so leave out their options"
        )
    settings = Settings(**values)
    if settings.size < 24 or settings.size % 4 or min(settings.batch, settings.blocks) < 1:
        parser.error("--size must be a multiple of 4 and at least 24, and --batch and --blocks at least 1")
    return settings


def _profile(file: Path, parser: argparse.ArgumentParser) -> tuple[Settings, list[dict[str, Any]]]:
    """Return the settings of the profiled step, and its operators."""
    try:
        profile = json.loads(file.read_text())
        return Settings(*(profile[name] for name in Settings._fields)), profile["operators"]
    except OSError as error:
        parser.error(f"{file}: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        parser.error(f"{file}: not a profile.json from scripts/profile_step.py")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser, options = parse(arguments)
    chip = _typed_chip(options, parser)
    settings, events = _settings(options, parser), None
    if options.profile:
        settings, events = _profile(options.profile, parser)
    works = step_work(*settings)
    launches = options.launches
    if launches is None:
        launches = count_launches(*settings)
    if chip is None:
        chip = measured_chip(settings.precision)
    measured = None
    if events is not None:
        measured = measured_by_layer(works, events)
    size, batch, blocks, identity, precision = settings
    loss = "off"
    if identity:
        loss = "on"
    print(
        f"One training step, batch {batch}, {size}x{size}, {blocks} blocks, identity {loss}, {precision}",
        *lines(works, chip, launches, measured),
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
