"""Measure which operators the C++ kernels compute faster than PyTorch on this processor, and keep the times.

    python -m bench.cpu_table                    # two minutes on two cores
    python -m bench.cpu_table --processor_check  # prints only this processor's class: avx2, avx512 or amx

The times go into kernels/cpu/tables/<class>.json, which impl="auto" reads. Both implementations of a layer
take turns in the same run, with as many threads as torch has. A time is the median of a block of rounds, from
the block with the smallest median. Weights are laid out in advance, as they are when a network is used
repeatedly. Before a layer is timed, the result of the kernel is compared with float64 on a small image.

The layers are those of the default networks for which there is a kernel: norms, reflection-padded 3x3 and 7x7
convolutions, and the first and last 4x4 convolutions of the discriminator and the U-Net. bf16 is measured
with AVX-512 on processors that have instructions for it, and with AVX2 always: without them, PyTorch takes
many times as long as in fp32. On a processor with AMX, two variables make PyTorch's operators and
the kernels behave as on one of a lower class:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m bench.cpu_table  # avx2.json
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m bench.cpu_table               # avx512.json

The bf16 times of avx512.json are best measured on AMD's Zen 4 or later, where AVX-512 multiplies bf16 at
twice the rate of fp32. On Intel's processors with AMX, it does so at less than half that of fp32.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import hardware
from bench.operators import channels_last
from fastcyclegan.engine import resolve_precision
from fastcyclegan.kernels import instance_norm
from fastcyclegan.kernels._convolution import AtenConvolution
from fastcyclegan.kernels.cpu import choice
from fastcyclegan.kernels.cpu.convolution import By, kind_of, norm_convolve
from fastcyclegan.kernels.cpu.forms import WeightForms
from fastcyclegan.kernels.cpu.library import processor, why_not_cpp
from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.testing import assert_parity

BLOCKS = 3
# Each timed call takes at least this many seconds, so that short operators are called repeatedly.
LEAST_SECONDS = 2e-3
# Layers with more floating-point operations are left out; the most similar smaller one decides for them.
MOST_FLOPS = 25e9
# One row: its two times in milliseconds, as they are stored.
Times = dict[str, float]


@dataclass(frozen=True)
class Layer:
    """A layer to measure, on one image of ``side`` x ``side`` pixels.

    ``op`` is "conv" or "norm", with C input and O output channels. ``reflect`` or ``padding`` is its border.
    """

    op: str
    C: int
    O: int
    side: int
    k: int = 0
    stride: int = 0
    padding: int = 0
    reflect: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations of a convolution; 0 for a norm."""
        out = (self.side + 2 * (self.padding + self.reflect) - self.k) // max(1, self.stride) + 1
        return 2 * out * out * self.C * self.O * self.k**2

    def key(self, dtype: torch.dtype) -> str:
        """Return the layer's name in the table."""
        return choice.key(self.op, dtype, self.k, self.stride, self.C, self.O, self.side**2)

    @property
    def conv(self) -> AtenConvolution:
        stride, padding = [self.stride] * 2, [self.padding] * 2
        return AtenConvolution(stride, padding, [1, 1], False, [0, 0], 1)


def layers() -> Iterator[Layer]:
    """Yield the layers of the default networks that a C++ kernel can compute."""
    for C in (64, 128, 256, 512):
        for side in (256, 128, 64, 32)[int(C > 64) :]:
            yield Layer("norm", C, C, side)
    yield Layer("norm", 512, 512, 16)
    for C in (64, 128, 256, 512):
        for side in (32, 64, 128):
            yield Layer("conv", C, C, side, 3, 1, reflect=1)
    for side in (64, 128, 256):
        for C, O in ((3, 64), (1, 64), (2, 64), (64, 3), (64, 1), (64, 2)):
            yield Layer("conv", C, O, side, 7, 1, reflect=3)
    for side in (64, 128, 256):
        for C in (3, 1):
            yield Layer("conv", C, 64, side, 4, 2, padding=1)
    for side in (16, 32):
        yield Layer("conv", 512, 1, side, 4, 1, padding=1)


def measured_layers() -> list[Layer]:
    """Return those of ``layers`` that have a kernel and are not too large."""
    chosen = []
    for layer in layers():
        weight = torch.empty(layer.O, layer.C, layer.k, layer.k, device="meta")
        has_kernel = layer.op == "norm" or kind_of(layer.conv, weight, layer.reflect) is not None
        if has_kernel and layer.flops <= MOST_FLOPS:
            chosen.append(layer)
    return chosen


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
        self.weight = torch.randn(layer.O, layer.C, layer.k, layer.k) / math.sqrt(layer.C * layer.k**2 + 1)
        self.bias = torch.randn(layer.O)

    def run(self, by: By) -> Tensor:
        layer = self.layer
        if layer.op == "norm":
            return instance_norm(self.x, act="relu", impl="cpp" if by == "cpp" else "reference")
        return norm_convolve(self.x, None, layer.reflect, self.weight, self.bias, layer.conv, by=by)

    def exact(self) -> Tensor:
        """Return the float64 result."""
        layer, x = self.layer, self.x.double()
        if layer.op == "norm":
            return F.relu(F.instance_norm(x))
        if layer.reflect:
            x = F.pad(x, (layer.reflect,) * 4, mode="reflect")
        weight, bias = (t.to(self.dtype).double() for t in (self.weight, self.bias))
        return F.conv2d(x, weight, bias, layer.stride, layer.padding)


def require_right(layer: Layer, dtype: torch.dtype) -> None:
    """Raise AssertionError unless the kernel's result on a small image satisfies the parity rule."""
    small = Case(replace(layer, side=min(layer.side, 24)), dtype)
    assert_parity(layer.key(dtype), small.run("cpp"), small.run("torch"), small.exact(), dtype)


def measure(layer: Layer, dtype: torch.dtype, rounds: int) -> Times:
    """Return the milliseconds that both implementations of ``layer`` take, measured in turns.

    Raises AssertionError if the kernel's result is wrong.
    """
    best: dict[By, float] = {"cpp": math.inf, "torch": math.inf}
    with torch.inference_mode(), WeightForms():
        require_right(layer, dtype)
        case = Case(layer, dtype)
        for by in best:
            _seconds(case, by, 1)
        repeats = {by: math.ceil(LEAST_SECONDS / _seconds(case, by, 1)) for by in best}
        for _ in range(BLOCKS):
            taken: dict[By, list[float]] = {"cpp": [], "torch": []}
            for number in range(rounds):
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
    if layer.flops:
        cells += f"{layer.flops / times['cpp'] / 1e6:>10.0f}{layer.flops / times['torch'] / 1e6:>10.0f}"
    return cells


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
        "--rounds", type=int, default=7, help=f"rounds in each of {BLOCKS} blocks (default: %(default)s)"
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
