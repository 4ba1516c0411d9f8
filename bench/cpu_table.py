"""Measure which operators the C++ kernels compute faster than PyTorch on this processor, and keep the times.

    python -m bench.cpu_table                    # five minutes on two cores
    python -m bench.cpu_table --processor_check  # prints only this processor's class: avx2, avx512 or amx

The times go into kernels/cpu/tables/<class>.json, which impl="auto" reads. Both implementations of a layer
take turns in the same run, with as many threads as torch has. A time is the median of a block of rounds, from
the block with the smallest median. Before a layer is timed, the result of the kernel is compared with float64
on a small image. Each layer is measured in up to four ways:

    conv   forward, with a weight that is laid out in advance, as in a network that is used repeatedly
    once   forward, with a weight as it is, as in training, where it changes in every iteration
    dgrad  the gradient of the image
    wgrad  the gradient of the weight, added to another, as in training

The layers are those of the default networks for which there is a kernel: reflection-padded 3x3 and 7x7
convolutions, and the first and last 4x4 convolutions of the discriminator and the U-Net. bf16 is measured
with AVX-512 on processors that have instructions for it, and with AVX2 always, where both implementations
compute in fp32. On a processor with AMX, two variables make PyTorch's operators and the kernels behave as on
one of a lower class:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m bench.cpu_table  # avx2.json
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m bench.cpu_table               # avx512.json

The bf16 times of avx512.json are best measured on AMD's Zen 4 or later, where AVX-512 multiplies bf16 at
twice the rate of fp32. On Intel's processors with AMX, it does so at less than half that of fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import hardware
from bench.operators import channels_last
from fastcyclegan.engine import resolve_precision
from fastcyclegan.kernels._calls import NormConvSaved
from fastcyclegan.kernels._convolution import AtenConvolution
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import choice
from fastcyclegan.kernels.cpu.convolution import By, Op, chosen, gradients, norm_convolve
from fastcyclegan.kernels.cpu.forms import WeightForms
from fastcyclegan.kernels.cpu.library import why_not_cpp
from fastcyclegan.kernels.cpu.processors import processor
from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.testing import assert_parity

# How a layer is measured, and the operator that then computes it.
OPS: dict[str, Op] = {"conv": "conv", "once": "conv", "dgrad": "dgrad", "wgrad": "wgrad"}
BLOCKS = 3
# A block ends early after so many seconds, but not before so many rounds.
BLOCK_SECONDS, LEAST_ROUNDS = 0.5, 3
# Each timed call takes at least this many seconds, so that short operators are called repeatedly.
LEAST_SECONDS = 2e-3
# Layers with more floating-point operations are left out; the most similar smaller one decides for them.
MOST_FLOPS = 25e9
# One row: its two times in milliseconds, as they are stored.
Times = dict[str, float]


@dataclass(frozen=True)
class Layer:
    """A convolution of one image of ``side`` x ``side`` pixels, measured in the way ``op``, a key of OPS.

    It has C input and O output channels. ``reflect`` or ``padding`` is its border.
    """

    op: str
    C: int
    O: int
    side: int
    k: int
    stride: int
    padding: int = 0
    reflect: int = 0

    @property
    def out_side(self) -> int:
        return (self.side + 2 * (self.padding + self.reflect) - self.k) // self.stride + 1

    @property
    def flops(self) -> int:
        """Floating-point operations, which a gradient has as many of as the convolution itself."""
        return 2 * self.out_side**2 * self.C * self.O * self.k**2

    def key(self, dtype: torch.dtype) -> str:
        """Return the layer's name in the table."""
        return choice.key(self.op, dtype, self.k, self.stride, self.C, self.O, self.side**2)

    @property
    def conv(self) -> AtenConvolution:
        stride, padding = [self.stride] * 2, [self.padding] * 2
        return AtenConvolution(stride, padding, [1, 1], False, [0, 0], 1)

    @property
    def has_kernel(self) -> bool:
        x = torch.empty(1, self.C, self.side, self.side, device="meta")
        weight = torch.empty(self.O, self.C, self.k, self.k, device="meta")
        return chosen(OPS[self.op], x, weight, self.conv, self.reflect, by="cpp") is not None


def layers(op: str) -> Iterator[Layer]:
    """Yield the layers of the default networks that a C++ kernel can compute, to be measured as ``op``."""
    for C in (64, 128, 256, 512):
        for side in (32, 64, 128):
            yield Layer(op, C, C, side, 3, 1, reflect=1)
    for side in (64, 128, 256):
        for C, O in ((3, 64), (1, 64), (2, 64), (64, 3), (64, 1), (64, 2)):
            yield Layer(op, C, O, side, 7, 1, reflect=3)
    for side in (64, 128, 256):
        for C in (3, 1):
            yield Layer(op, C, 64, side, 4, 2, padding=1)
    for side in (16, 32):
        yield Layer(op, 512, 1, side, 4, 1, padding=1)


def measured_layers() -> list[Layer]:
    """Return the layers that have a kernel and are not too large, in each way in which they are measured."""
    found = []
    for op in OPS:
        found += [layer for layer in layers(op) if layer.has_kernel and layer.flops <= MOST_FLOPS]
    return found


def dtypes(kind: str) -> list[torch.dtype]:
    """Return the dtypes to measure on a processor of class ``kind``."""
    has_bf16 = resolve_precision("auto", torch.device("cpu"), compiled=True) == "bf16"
    if kind != "avx2" and not has_bf16:
        return [torch.float32]
    return [torch.float32, torch.bfloat16]


# --- One layer ----------------------------------------------------------------------------------------------


class Case:
    """A layer with random tensors. ``run`` computes it by the C++ kernel ("cpp") or by PyTorch ("torch")."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.layer, self.dtype = layer, dtype
        self.x = channels_last(1, layer.C, layer.side, layer.side, dtype=dtype)
        self.g = channels_last(1, layer.O, layer.out_side, layer.out_side, dtype=dtype)
        weight = channels_last(layer.O, layer.C, layer.k, layer.k, dtype=torch.float32)
        self.weight = weight / math.sqrt(layer.C * layer.k**2)
        self.bias = torch.randn(layer.O)
        # What the weight's gradient is added to, as training does with the second of an iteration.
        self.total = torch.zeros_like(self.weight)

    def run(self, by: By) -> Tensor:
        """Return the output or the gradient; one of a weight is that of all calls so far."""
        layer = self.layer
        if OPS[layer.op] == "conv":
            return norm_convolve(self.x, None, layer.reflect, self.weight, self.bias, layer.conv, by=by).out
        needs = [layer.op == "dgrad", layer.op == "wgrad", False]
        empty = self.x.new_empty(0)
        saved = NormConvSaved(
            self.x, Norm(), empty, empty, self.weight, empty, layer.reflect, needs, layer.conv
        )
        if layer.op == "dgrad":
            return gradients(self.g, saved, by=by)[0]
        gradients(self.g, saved, by=by, into=self.total)
        return self.total

    def exact(self) -> Tensor:
        """Return the float64 result of the first call."""
        layer = self.layer
        x, weight, bias, g = (t.to(self.dtype).double() for t in (self.x, self.weight, self.bias, self.g))
        wanted = {"dgrad": x, "wgrad": weight}.get(layer.op)
        if wanted is not None:
            wanted.requires_grad_()
        with torch.enable_grad():
            if layer.reflect:
                padded = F.pad(x, (layer.reflect,) * 4, mode="reflect")
            else:
                padded = x
            y = F.conv2d(padded, weight, bias, layer.stride, layer.padding)
        return y if wanted is None else torch.autograd.grad(y, wanted, g)[0]


def require_right(layer: Layer, dtype: torch.dtype) -> None:
    """Raise AssertionError unless the kernel's result on a small image satisfies the parity rule."""
    small = replace(layer, side=min(layer.side, 24))
    ours, pytorch = Case(small, dtype), Case(small, dtype)
    assert_parity(layer.key(dtype), ours.run("cpp"), pytorch.run("torch"), ours.exact(), dtype)


def forms(op: str) -> AbstractContextManager[Any]:
    """Return the context in which a layer is measured as ``op``: "conv" keeps the forms of weights."""
    return WeightForms() if op == "conv" else contextlib.nullcontext()


def measure(layer: Layer, dtype: torch.dtype, rounds: int) -> Times:
    """Return the milliseconds that both implementations of ``layer`` take, measured in turns.

    Raises AssertionError if the kernel's result is wrong.
    """
    best: dict[By, float] = {"cpp": math.inf, "torch": math.inf}
    with torch.no_grad(), forms(layer.op):
        require_right(layer, dtype)
        case = Case(layer, dtype)
        for by in best:
            _seconds(case, by, 1)
        repeats = {by: math.ceil(LEAST_SECONDS / _seconds(case, by, 1)) for by in best}
        for _ in range(BLOCKS):
            taken: dict[By, list[float]] = {"cpp": [], "torch": []}
            end = time.perf_counter() + BLOCK_SECONDS
            for number in range(rounds):
                if number >= LEAST_ROUNDS and time.perf_counter() > end:
                    break
                # Each of the two goes first in every second round.
                for by in sorted(best, reverse=number % 2 == 1):
                    taken[by].append(_seconds(case, by, repeats[by]))
            best = {by: min(best[by], median(taken[by])) for by in best}
    return {by: float(f"{1e3 * seconds:.4g}") for by, seconds in best.items()}


def _seconds(case: Case, by: By, calls: int) -> float:
    """Return the mean seconds of ``calls`` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        case.run(by)
    return (time.perf_counter() - start) / calls


# --- The table ----------------------------------------------------------------------------------------------


def line_of(layer: Layer, dtype: torch.dtype, times: Times) -> str:
    """Return a line to read: the layer, both times, how much faster the kernel is, and its GFLOP/s."""
    cells = f"{layer.key(dtype):<42}{times['cpp']:>10.4g}{times['torch']:>10.4g}"
    cells += f"{times['torch'] / times['cpp']:>10.2f}"
    return cells + f"{layer.flops / times['cpp'] / 1e6:>10.0f}{layer.flops / times['torch'] / 1e6:>10.0f}"


def text_of(table: dict[str, Times]) -> str:
    """Return the file's content: JSON with one layer in each line."""
    lines = [f"{json.dumps(name)}: {json.dumps(times)}" for name, times in sorted(table.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_table(table: dict[str, Times], file: Path) -> None:
    """Write the file that ``choice.times`` reads, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda partial: partial.write_text(text_of(table)))


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed options; the caller reports later errors through the parser."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--processor_check", action="store_true", help="only print this processor's class")
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help=f"most rounds in each of {BLOCKS} blocks (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: the table of this class)")
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser, options = parse(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    reason, kind = why_not_cpp(), processor()
    if reason:
        parser.error(f"impl='cpp' {reason}")
    print(f"class {kind}: {hardware()}")
    if options.processor_check:
        return 0
    file = choice.table_file(kind) if options.out is None else options.out
    print(f"{'layer':<42}{'cpp ms':>10}{'torch ms':>10}{'faster':>10}{'cpp':>10}{'torch GFLOP/s':>15}")
    table: dict[str, Times] = {}
    for layer in measured_layers():
        for dtype in dtypes(kind):
            times = measure(layer, dtype, options.rounds)
            table[layer.key(dtype)] = times
            print(line_of(layer, dtype, times), flush=True)
    write_table(table, file)
    print(f"wrote {len(table)} layers to {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
