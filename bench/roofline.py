"""The floor of a training step: what its arithmetic, its memory traffic and its launches must take on a chip,
layer by layer.

    python -m bench.roofline                                            # this machine, ceilings measured now
    python -m bench.roofline --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.1  # another chip
    python -m bench.roofline --profile profile/profile.json            # measured time over floor by layer

FLOPs are those of the convolutions' multiplications and additions. Bytes are the least that must move with
everything between two convolutions fused into one pass: each pass reads what it needs once and writes its
result once, statistics come with the write before. A layer's floor is the larger of its arithmetic and its
traffic; the step's is their sum and the launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.testing import is_cancelled_bias

ITEM = {"bf16": 2, "fp32": 4}
ADAM_BYTES = 28  # a parameter's weight, gradient and two moments read, all but the gradient written, in fp32


@dataclass(frozen=True)
class Chip:
    """A chip's ceilings: matrix products in FLOP/s, memory in byte/s, seconds of one launch; ``source`` says
    who says so.
    """

    matrix: float
    bandwidth: float
    launch: float
    source: str


@dataclass(frozen=True)
class Work:
    """What one kind of layer does in one pass of a step: ``calls`` times ``flops`` and ``bytes``."""

    layer: str
    phase: str
    calls: int
    flops: float
    bytes: float
    shapes: tuple[tuple[int, ...], ...] = ()
    """Input (batch 1 first) and weight of a convolution: how a profile's events are known to be its."""

    def floor(self, chip: Chip) -> float:
        """Seconds that all its calls take at least."""
        return self.calls * max(self.flops / chip.matrix, self.bytes / chip.bandwidth)

    def bound(self, chip: Chip) -> str:
        return "arithmetic" if self.flops / chip.matrix >= self.bytes / chip.bandwidth else "memory"


@dataclass(frozen=True)
class Layer:
    """A convolution as it is called: shapes of its input, weight and output, and whether a norm follows
    it."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    normed: bool
    residual: bool

    @property
    def flops(self) -> float:
        """Of one picture batch, forward; each of the two backward passes has as many."""
        N, C, H, W = self.x
        O, OH, OW = self.y[1:]
        transposed = self.weight[0] == C and self.weight[1] == O and OH > H
        places = H * W if transposed else OH * OW
        return 2.0 * N * places * C * O * self.weight[2] * self.weight[3]


def layers_of(net: nn.Module, size: tuple[int, int], batch: int, channels: int = 3) -> list[Layer]:
    """Return the convolutions of ``net`` for pictures of ``size`` (height, width), as they run, from a dry
    run without memory.
    """
    found: list[Layer] = []
    names = {module: name for name, module in net.named_modules()}

    def heard(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        name, (x,) = names[module], inputs
        shapes = (tuple(x.shape), tuple(module.weight.shape), tuple(y.shape))  # type: ignore[arg-type]
        found.append(
            Layer(name, *shapes, normed=is_cancelled_bias(net, f"{name}.bias"), residual="conv_block" in name)
        )

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(heard) for module in net.modules() if isinstance(module, kinds)]
    try:
        net.to("meta")(torch.empty(batch, channels, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _label(layer: Layer) -> str:
    O, side = layer.y[1], f"{layer.y[2]}x{layer.y[3]}"
    kind = (
        "residual "
        if layer.residual
        else "transposed "
        if layer.y[2] > layer.x[2] and layer.weight[2] == 3
        else ""
    )
    return f"{kind}conv {layer.weight[2]}x{layer.weight[3]}, {layer.x[1]} to {O}, {side}"


def passes(layer: Layer, item: int, forward: int, dgrad: int, wgrad: int, phase: str) -> Iterator[Work]:
    """Yield the work of a convolution and of the norm after it, for so many calls of each pass."""
    x, w, y = (_numel(shape) * item for shape in (layer.x, layer.weight, layer.y))
    label, shapes = _label(layer), (layer.x, layer.weight)
    convolution = (("forward", forward, x + w + y), ("dgrad", dgrad, y + w + x), ("wgrad", wgrad, x + y + w))
    for name, calls, moved in convolution:
        if calls:
            yield Work(label, f"{phase}, {name}", calls, layer.flops, moved, shapes)
    if layer.normed:
        skip = y if layer.residual and layer.name.endswith((".5", ".6")) else 0
        # Forward: read the convolution's output (and the skip), write the next input. Backward: two
        # reductions, then the gradient, and the next input again for the weight gradient.
        if forward:
            yield Work(f"norm after {label}", f"{phase}, forward", forward, 0.0, 2 * y + skip)
        if dgrad or wgrad:
            yield Work(f"norm after {label}", f"{phase}, backward", max(dgrad, wgrad), 0.0, 5 * y)


def step_work(
    size: int, batch: int, blocks: int = 9, identity: bool = True, precision: str = "bf16"
) -> list[Work]:
    """Return the work of one training iteration with default widths, equal kinds together."""
    G, D = reference.Generator(n_blocks=blocks), reference.Discriminator()
    parameters = 2 * sum(p.numel() for net in (G, D) for p in net.parameters())
    item = ITEM[precision]
    found: list[Work] = []
    # Of each generator: a pass over real pictures, one over the other's fakes, and one for identity.
    first_passes, all_passes = (2 if identity else 1), (3 if identity else 2)
    for n, layer in enumerate(layers_of(G, (size, size), batch)):
        # The first layer's input needs a gradient only where it is a fake.
        dgrad = all_passes if n else all_passes - first_passes
        found += passes(layer, item, 2 * all_passes, 2 * dgrad, 2 * all_passes, "G")
    for n, layer in enumerate(layers_of(D, (size, size), batch)):
        # Through D for G's loss (its weights frozen), then over real and pooled pictures.
        found += passes(layer, item, 2, 2, 0, "G through D")
        found += passes(layer, item, 4, 4 if n else 0, 4, "D")
    found.append(Work("Adam", "update", 1, 0.0, float(parameters * ADAM_BYTES)))
    return merged(found)


def merged(works: list[Work]) -> list[Work]:
    """Return ``works`` with equal layers and passes added up."""
    kinds: dict[Work, int] = {}
    for work in works:
        kind = replace(work, calls=1)
        kinds[kind] = kinds.get(kind, 0) + work.calls
    return [replace(kind, calls=calls) for kind, calls in kinds.items()]


def count_launches(size: int, batch: int, blocks: int, identity: bool, precision: str) -> int:
    """Return the Triton launches and ATen calls of one of our steps, from a dry run on the CPU."""
    from bench.counts import step_counts

    counts = step_counts("ours", size, batch, blocks, identity, precision)
    return counts.launches.total() + counts.aten.total()


def measured_chip(precision: str) -> Chip:
    """Return this machine's ceilings as bench_ceilings.py measures them, the best of each."""
    from bench.bench_ceilings import contest
    from bench.machine import hardware
    from bench.timing import race

    outcomes = race(
        {
            name: build
            for name, build in contest().items()
            if name in ("copy", "launch", f"matmul {precision}")
        },
        10,
        5,
    )
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    best = {name.partition(" ")[0]: min(outcome.seconds) for name, outcome in outcomes.items()}
    info = {name.partition(" ")[0]: outcome.info for name, outcome in outcomes.items()}
    rates = info["matmul"]["flops"] / best["matmul"], info["copy"]["bytes"] / best["copy"]
    return Chip(*rates, best["launch"] / info["launch"]["operations"], f"measured on {hardware()}")


# --- The table ----------------------------------------------------------------------------------------------


def lines(
    works: list[Work], chip: Chip, launches: int, measured: dict[str, float] | None = None
) -> Iterator[str]:
    """Yield the table: the costliest first. ``measured``: seconds by layer and pass, where there is a
    profile.
    """
    yield (
        f"Ceilings ({chip.source}): {chip.matrix / 1e12:.3g} TFLOP/s, {chip.bandwidth / 1e9:.4g} GB/s,"
        f" {chip.launch * 1e6:.3g} us a launch"
    )
    yield f"{'layer':<52}{'pass':<22}{'calls':>6}{'GFLOP':>10}{'MB':>10}{'floor ms':>10}  {'bound':<11}" + (
        f"{'measured':>10}{'over floor':>12}" if measured is not None else ""
    )
    for work in sorted(works, key=lambda w: -w.floor(chip)):
        flops, moved = work.calls * work.flops / 1e9, work.calls * work.bytes / 1e6
        cells = f"{work.layer:<52}{work.phase:<22}{work.calls:>6}{flops:>10.1f}{moved:>10.1f}"
        cells += f"{work.floor(chip) * 1e3:>10.4g}  {work.bound(chip):<11}"
        seconds = (measured or {}).get(key_of(work))
        yield cells + (f"{seconds * 1e3:>8.4g} ms{seconds / work.floor(chip):>11.2f}x" if seconds else "")
    flops, moved = (sum(w.calls * getattr(w, name) for w in works) for name in ("flops", "bytes"))
    floor = sum(w.floor(chip) for w in works)
    arithmetic = flops / chip.matrix
    yield (
        f"in all: {flops / 1e12:.3f} TFLOP ({arithmetic * 1e3:.4g} ms), {moved / 1e9:.3f} GB"
        f" ({moved / chip.bandwidth * 1e3:.4g} ms)"
    )
    launching = launches * chip.launch
    both = f"one after the other {(floor + launching) * 1e3:.4g} ms"
    yield f"floor: {floor * 1e3:.4g} ms by layers; {launches} launches {launching * 1e3:.4g} ms; {both}"
    if measured is not None:
        yield (
            "measured: a convolution's backward is one call; both gradients, and equal layers of other"
            " phases, share its time"
        )


def total(works: list[Work], chip: Chip, launches: int) -> float:
    """Return the floor of a step in seconds."""
    return sum(work.floor(chip) for work in works) + launches * chip.launch


def key_of(work: Work) -> str:
    return f"{work.layer}|{work.phase}"


def measured_by_layer(works: list[Work], events: list[dict[str, Any]]) -> dict[str, float]:
    """Return seconds by layer and pass, from a profile's operators with their shapes (profile_step.py).

    A convolution's event is known by the shapes of its input and weight; where forward, or either gradient,
    of several phases have the same shapes, its time is shared out by their floors' calls.
    """
    found: Counter[str] = Counter()
    for event in events:
        shapes = {
            tuple(shape)
            for shape in event["shapes"]
            if isinstance(shape, list) and all(isinstance(n, int) for n in shape)
        }
        kinds = [
            w
            for w in works
            if w.shapes and set(w.shapes) <= shapes and (w.phase.endswith("forward") != event["backward"])
        ]
        calls = sum(w.calls for w in kinds)
        for work in kinds:
            found[key_of(work)] += event["seconds"] * work.calls / calls
    return dict(found)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, help="side of the pictures, a multiple of 4 (default: 256)")
    parser.add_argument("--batch", type=int, help="default: 1")
    parser.add_argument("--blocks", type=int, help="residual blocks of a generator (default: 9)")
    parser.add_argument("--no_identity", action="store_true", help="without the identity loss")
    parser.add_argument("--precision", choices=sorted(ITEM), help="default: bf16")
    parser.add_argument(
        "--matrix_tflops", type=float, help="the chip's rate of matrix products in this precision"
    )
    parser.add_argument(
        "--bandwidth_gbs", type=float, help="the chip's rate of copying, bytes read and written"
    )
    parser.add_argument("--launch_us", type=float, help="microseconds of one launch")
    parser.add_argument(
        "--launches", type=int, help="launches of a step; without it those of ours are counted"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        help="profile.json of scripts/profile_step.py, which knows the size and the rest",
    )
    options = parser.parse_args(arguments)
    typed = (options.matrix_tflops, options.bandwidth_gbs, options.launch_us)
    if any(value is not None for value in typed) and not all(
        value is not None and value > 0 for value in typed
    ):
        parser.error("--matrix_tflops, --bandwidth_gbs and --launch_us belong together, and are more than 0")
    given = (options.size, options.batch, options.blocks, options.no_identity or None, options.precision)
    if options.profile and any(value is not None for value in given):
        parser.error("--profile knows its own size, batch, blocks, identity and precision: leave them out")
    size, batch, blocks = (
        default if value is None else value for value, default in zip(given, (256, 1, 9), strict=False)
    )
    if size < 24 or size % 4 or min(batch, blocks) < 1:
        parser.error("--size must be a multiple of 4, at least 24, --batch and --blocks at least 1")
    what: tuple[Any, ...] = (size, batch, blocks, not options.no_identity, options.precision or "bf16")
    events = None
    if options.profile:
        try:
            profile = json.loads(options.profile.read_text())
            what = tuple(profile[name] for name in ("size", "batch", "blocks", "identity", "precision"))
            events = profile["operators"]
        except OSError as error:
            parser.error(f"{options.profile}: {error.strerror}")
        except (ValueError, KeyError, TypeError):
            parser.error(f"{options.profile}: not a profile of scripts/profile_step.py")
    works = step_work(*what)
    launches = options.launches if options.launches is not None else count_launches(*what)
    if typed[0] is None:
        chip = measured_chip(what[4])
    else:
        chip = Chip(typed[0] * 1e12, typed[1] * 1e9, typed[2] * 1e-6, "typed in")
    size, batch, blocks, identity, precision = what
    print(
        f"One training step, {batch} of {size}x{size}, {blocks} blocks, identity"
        f" {'on' if identity else 'off'}, {precision}"
    )
    print(
        "\n".join(lines(works, chip, launches, None if events is None else measured_by_layer(works, events)))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
