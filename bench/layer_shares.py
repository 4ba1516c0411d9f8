"""Show what a training step spends on a processor, layer by layer, beside the peak of the machine.

    python -m bench.layer_shares                              # 128x128, fp32
    python -m bench.layer_shares --size 256 --precision bf16

One iteration of fastcyclegan's training step is recorded: every convolution, every gradient of one and every
norm, with their shapes, and what computes each of them. Then each distinct call is timed by itself, with
random numbers, as are the whole iteration, a large matrix product in the same dtype, and a copy. All take
turns, so they have the same conditions, and a call finds as little of its data in the caches as in training.
A time is the median of the rounds; the two peaks are the best of them.

FLOPs are those of the definition, so a kernel that multiplies less (Winograd's) can exceed the peak. A norm
is compared with the copy instead, by the bytes that it has to move. A dgrad includes the folding of a
reflected border, and a wgrad is added to another.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.bench_ceilings import make_builders
from bench.machine import DEVICE, hardware
from bench.operators import channels_last
from bench.providers import LR
from bench.step_work import Layer, label_of
from bench.timing import Builders, Entrant, builders_of, race
from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.kernels._calls import NormConvSaved
from fastcyclegan.kernels._convolution import AtenConvolution
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import convolution, functions
from fastcyclegan.kernels.cpu.library import why_not_cpp
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

NETWORKS = ModelConfig()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDS = 5
# The first iterations allocate, and fill the image pools.
WARM_UPS = 2
ONEDNN = "oneDNN"
NO_CONVOLUTION = AtenConvolution([], [], [], False, [], 1)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A kind of call: a ``work`` of a convolution, or of a norm, which has no weight.

    ``x``, ``weight`` and ``y`` are the shapes of the layer's input, weight and output, ``border`` is what it
    pads by reflection, and ``by`` the kernel that computes it.
    """

    work: str
    by: str
    x: Shape
    y: Shape
    weight: Shape = ()
    border: int = 0
    residual: bool = False
    conv: AtenConvolution = field(default=NO_CONVOLUTION, compare=False)

    @property
    def flops(self) -> float:
        """Floating-point operations of a convolution or a gradient of it; 0 for a norm."""
        return self._layer.flops if self.weight else 0.0

    @property
    def _layer(self) -> Layer:
        return Layer("", self.x, self.weight, self.y, False, False)

    @property
    def label(self) -> str:
        if self.weight:
            return label_of(self._layer)
        written = f", border {self.border}" if self.border else ""
        added = ", with residual" if self.residual else ""
        return f"norm, {self.x[1]} channels, {self.x[2]}x{self.x[3]}{written}{added}"

    def moved(self, dtype: torch.dtype) -> int:
        """Return the bytes that a norm reads and writes."""
        x, y = (torch.Size(shape).numel() for shape in (self.x, self.y))
        numbers = {"forward": 2 * x + y + x * self.residual, "again": x + y, "backward": 2 * y + 3 * x}
        return numbers[self.work] * dtype.itemsize


# --- Recording an iteration ---------------------------------------------------------------------------------


def _name(kind: str | None) -> str:
    return ONEDNN if kind is None else kind


def _forward(
    results: Any, x: Tensor, norm: Any, border: int, weight: Tensor, _: Any, conv: Any, **options: Any
) -> Iterator[Call]:
    kind = convolution.chosen("conv", x, weight, conv, border, options["by"])
    # The norm before it has written the border, unless the kernel reads the border where it is.
    written = 0 if norm is None or kind == "winograd" else border
    N, C, H, W = x.shape
    size = (N, C, H + 2 * written, W + 2 * written)
    shapes = (size, tuple(results.out.shape), tuple(weight.shape))
    yield Call("forward", _name(kind), *shapes, border - written, conv=conv)


def _gradients(_: Any, g: Tensor, saved: NormConvSaved, **options: Any) -> Iterator[Call]:
    x, weight, needs = saved.x, saved.weight, saved.needs
    shapes = (tuple(x.shape), tuple(g.shape), tuple(weight.shape))
    wanted: dict[convolution.Op, bool] = {"dgrad": saved.normed or needs[0], "wgrad": needs[1]}
    for op, is_wanted in wanted.items():
        if is_wanted:
            kind = convolution.chosen(op, x, weight, saved.conv, saved.border, options["by"])
            if op == "dgrad" and kind is not None:
                kind = functions.TURNED.get(kind, kind)
            yield Call(op, _name(kind), *shapes, saved.border, conv=saved.conv)


def _norm(
    results: Any, x: Tensor, _: Norm, residual: Tensor | None = None, border: int = 0
) -> Iterator[Call]:
    shapes = (tuple(x.shape), tuple(results[0].shape))
    yield Call("forward", "norm", *shapes, border=border, residual=residual is not None)


def _norm_again(y: Tensor, x: Tensor, *_: Any) -> Iterator[Call]:
    yield Call("again", "norm", tuple(x.shape), tuple(y.shape))


def _norm_backward(
    _: Any, g: Tensor, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor, border: int = 0
) -> Iterator[Call]:
    yield Call("backward", "norm", tuple(x.shape), tuple(g.shape), border=border)


# The functions that compute layers, and how a call of each is described.
RECORDED: list[tuple[Any, str, Callable[..., Iterator[Call]]]] = [
    (convolution, "norm_convolve", _forward),
    (convolution, "gradients", _gradients),
    (functions, "norm", _norm),
    (functions, "norm_again", _norm_again),
    (functions, "norm_backward", _norm_backward),
]


@contextlib.contextmanager
def recorded() -> Iterator[Counter[Call]]:
    """Count the calls that compute layers inside the block. They run as usual."""
    calls: Counter[Call] = Counter()

    def observed(function: Callable[..., Any], describe: Callable[..., Iterator[Call]]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            results = function(*arguments, **options)
            calls.update(describe(results, *arguments, **options))
            return results

        return run

    with contextlib.ExitStack() as stack:
        for module, name, describe in RECORDED:
            replacement = observed(getattr(module, name), describe)
            stack.enter_context(mock.patch.object(module, name, replacement))
        yield calls


# --- Timing -------------------------------------------------------------------------------------------------


@functools.cache
def random_numbers(shape: Shape, dtype: torch.dtype) -> Tensor:
    """Return random numbers in channels_last; calls with equal shapes share them."""
    return channels_last(*shape, dtype=dtype)


def step_of(call: Call, dtype: torch.dtype) -> Callable[[], Any]:
    """Return a function that runs ``call`` once on random numbers in ``dtype``."""
    x, y = random_numbers(call.x, dtype), random_numbers(call.y, dtype)
    if not call.weight:
        return _norm_step(call, x, y)
    weight, empty = random_numbers(call.weight, torch.float32), x.new_empty(0)
    by: convolution.By = "torch" if call.by == ONEDNN else "cpp"
    if call.work == "forward":
        return lambda: convolution.norm_convolve(x, None, call.border, weight, None, call.conv, by=by)
    needs = [call.work == "dgrad", call.work == "wgrad", False]
    saved = NormConvSaved(x, Norm(), empty, empty, weight, empty, call.border, needs, call.conv)
    into = torch.zeros_like(weight) if needs[1] else None
    return lambda: convolution.gradients(y, saved, by=by, into=into)


def _norm_step(call: Call, x: Tensor, y: Tensor) -> Callable[[], Any]:
    norm, residual = Norm(act="relu"), x if call.residual else None
    if call.work == "forward":
        return lambda: functions.norm(x, norm, residual, border=call.border)
    _, mean, rstd = functions.norm(x, norm)
    if call.work == "again":
        return lambda: functions.norm_again(x, norm, mean, rstd)
    return lambda: functions.norm_backward(y, x, norm, mean, rstd, call.border)


@dataclass(frozen=True)
class Measured:
    """The recorded ``calls`` of an iteration, with their seconds by call, and those of one whole iteration.

    ``matrix`` and ``bandwidth`` are the peaks, in FLOP/s and byte/s.
    """

    calls: Counter[Call]
    seconds: dict[Call, float]
    iteration: float
    matrix: float
    bandwidth: float


def measure(size: int, precision: str) -> Measured:
    """Record one iteration at ``size`` x ``size`` with batch 1, and time it and its calls."""
    dtype, plan = DTYPES[precision], Plan(seed=0, count_A=9, count_B=9)
    engine = make_engine(seeded_networks(NETWORKS), precision=precision)
    batch = random_batch(size, plan, 0)
    for _ in range(WARM_UPS):
        engine.step(batch, LR)
    with recorded() as calls:
        engine.step(batch, LR)

    def timed(call: Call) -> Entrant:
        with torch.no_grad():
            step = step_of(call, dtype)
        return Entrant(torch.no_grad()(step))

    ceilings, matmul = make_builders(), f"matmul {precision}"
    builders: Builders = {name: ceilings[name] for name in ("copy", matmul)}
    builders["iteration"] = lambda: Entrant(lambda: engine.step(batch, LR))
    names = {str(number): call for number, call in enumerate(calls)}
    builders |= builders_of(names, lambda name: timed(names[name]))
    outcomes = race(builders, ROUNDS)
    random_numbers.cache_clear()
    for outcome in outcomes.values():
        if outcome.error is not None:
            raise outcome.error
    seconds = {call: median(outcomes[name].seconds) for name, call in names.items()}
    rates = [
        outcomes[name].info[counted] / min(outcomes[name].seconds)
        for name, counted in ((matmul, "flops"), ("copy", "bytes"))
    ]
    return Measured(calls, seconds, median(outcomes["iteration"].seconds), *rates)


# --- The table ----------------------------------------------------------------------------------------------

HEADS = ("layer", "images", "pass", "by", "ms", "calls", "ms in all", "of iteration", "rate", "of peak")


def table(measured: Measured, dtype: torch.dtype) -> list[tuple[str, ...]]:
    """Return the cells of each line; the passes of a layer follow one another."""
    first = list(dict.fromkeys((call.label, call.x[0]) for call in measured.calls))
    rows: list[tuple[str, ...]] = []
    for call in sorted(measured.calls, key=lambda call: first.index((call.label, call.x[0]))):
        seconds, count = measured.seconds[call], measured.calls[call]
        if call.flops:
            rate, unit, peak = call.flops / seconds, "GFLOP/s", measured.matrix
        else:
            rate, unit, peak = call.moved(dtype) / seconds, "GB/s", measured.bandwidth
        cells = (call.label, str(call.x[0]), call.work, call.by, f"{1e3 * seconds:.3g}", str(count))
        share = f"{100 * count * seconds / measured.iteration:.1f} %"
        rates = (f"{rate / 1e9:.4g} {unit}", f"{100 * rate / peak:.0f} %")
        rows.append((*cells, f"{1e3 * count * seconds:.4g}", share, *rates))
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"


def lines(measured: Measured, dtype: torch.dtype) -> Iterator[str]:
    """Yield the lines to print: the table, and the sum of its calls beside the iteration."""
    yield from aligned([HEADS, *table(measured, dtype)])
    total = sum(count * measured.seconds[call] for call, count in measured.calls.items())
    rest, flops = measured.iteration - total, sum(n * call.flops for call, n in measured.calls.items())
    yield f"\nall of these: {1e3 * total:.4g} ms"
    yield (
        f"one iteration: {1e3 * measured.iteration:.4g} ms; the difference of {1e3 * rest:.4g} ms is that of"
        " losses, activations outside norms, gradients of biases, Adam, the image pools and all calls"
    )
    rate = flops / measured.iteration
    yield (
        f"{flops / 1e9:.4g} GFLOP in an iteration are {rate / 1e9:.4g} GFLOP/s,"
        f" {100 * rate / measured.matrix:.0f} % of the peak of {measured.matrix / 1e9:.4g} GFLOP/s; a copy"
        f" moves {measured.bandwidth / 1e9:.3g} GB/s"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--size", type=int, default=128, help="image size in pixels (default: %(default)s)")
    parser.add_argument(
        "--precision", choices=DTYPES, default="fp32", help="precision of the layers (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.size < 24 or options.size % 4:
        parser.error(f"--size must be a multiple of 4 and at least 24, got {options.size}")
    if DEVICE == "cuda":
        parser.error("this machine trains on its GPU; scripts/profile_step.py shows what a step does there")
    if reason := why_not_cpp():
        parser.error(f"impl='cpp' {reason}")
    settings = f"{options.size}x{options.size}, batch 1, {NETWORKS.netG}, {options.precision}"
    print(f"{hardware()}: training at {settings}\n", flush=True)
    measured = measure(options.size, options.precision)
    print("\n".join(lines(measured, DTYPES[options.precision])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
