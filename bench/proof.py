"""Present the result of prove.py as a table of differences, a table of speeds, and an image."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.figures import Row, Spread, anchor_of, duration, speed_up
from bench.machine import DEVICE, machine
from bench.parity import EXACT, EXACT_STEPS, Difference, least_size
from bench.providers import PROVIDERS, TrainStep
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.pixels import draw_grid, to_pixels

# The image shows this many samples per direction, each at least SIDE pixels high and wide.
SHOWN, SIDE = 3, 128


@dataclasses.dataclass
class Proof:
    """The result of prove.py, of training with ``config``.

    ``differences`` compare each provider with float64, ``rows`` contain its times, and ``steps`` are the
    training steps that were timed.
    """

    config: TrainConfig
    exact: float
    """The difference between fastcyclegan and the official training step when both run in float64."""
    differences: dict[str, list[Difference]]
    rows: list[Row]
    steps: dict[str, TrainStep]

    @property
    def passes(self) -> bool:
        differences = list(itertools.chain.from_iterable(self.differences.values()))
        return self.exact <= EXACT and all(difference.passes for difference in differences)


def differences_table(proof: Proof, ours: str, steps: int) -> Iterator[str]:
    """Yield the lines that compare provider ``ours`` with float64 after ``steps`` iterations.

    Next to each error is the error that the dtype alone causes in the official training step.
    """
    precision = proof.steps[ours].precision
    result = _result_text(proof.exact <= EXACT)
    bound = f"largest relative difference {proof.exact:.1e}, allowed {EXACT:.0e}  {result}"
    side = least_size(proof.config)
    yield f"both in float64, {EXACT_STEPS} iterations on a {side}x{side} crop of each image: {bound}\n"
    heads = (
        f"error against float64, {steps} iterations",
        f"fastcyclegan, {precision}",
        f"official, {precision}",
        "allowed",
        "",
    )
    yield "{:<40}{:>20}{:>16}{:>12}  {}".format(*heads)
    for d in proof.differences[ours]:
        result = _result_text(d.passes)
        yield f"  {d.quantity:<38}{d.error:>20.2e}{d.of_the_dtype:>16.2e}{d.allowed:>12.2e}  {result}"
        yield f"  {'':<6}{'largest absolute error':<32}{d.largest:>20.2e}{d.largest_of_the_dtype:>16.2e}"
    yield ("Relative errors of each quantity as a whole, and the largest absolute error of any number in it.")
    yield "Gradients are Adam's first moments. Weight changes are the sum of all updates; for their relative"
    yield "error, each weight's change is multiplied by its gradient."
    if precision == "fp32":
        yield (
            "In fp32, rounding moves a few ReLU inputs to the other side of zero, so 3e-02 is allowed after a"
            " derivative, and 3e-01 after Adam."
        )


def _result_text(passes: bool) -> str:
    if passes:
        return "passes"
    return "FAILS"


def speed_table(proof: Proof) -> Iterator[str]:
    """Yield the lines of a table with the rates, the speed-up and the memory of both providers."""
    anchor = anchor_of(proof.rows)
    titles = [f"{PROVIDERS[row.provider].title} ({row.info['precision']})" for row in proof.rows]
    width = max(map(len, titles)) + 4

    def line(name: str, cells: Sequence[str]) -> str:
        return f"{name:<18}" + "".join(f"{cell:<{width}}" for cell in cells)

    def row_of(name: str, cell: Callable[[Row], str]) -> str:
        return line(name, [cell(row) for row in proof.rows])

    yield line("", titles)
    yield row_of("iterations/s", lambda row: f"{_rates(row, 1):.3g}")
    yield row_of("images/s", lambda row: f"{_rates(row, row.info['pictures'] / row.info['operations']):.3g}")
    yield row_of("speed-up", lambda row: "1" if row is anchor else f"{speed_up(row, anchor):.2f}")
    yield row_of("peak memory", _peak)
    yield row_of("first iteration", lambda row: duration(Spread(row.info["first_s"], 0, 0, 1)))
    yield row_of("measured", _measured)
    yield (
        "Medians, with the smallest and largest values. The speed-up compares rounds that ran one after the"
        " other."
    )
    if DEVICE == "cpu" and proof.rows[-1].provider == "ours_compiled":
        yield (
            "Without the C++ kernels, PyTorch computes both: the speed-up is that of bf16 and torch.compile."
            if PROVIDERS["ours_compiled"].compiles(DEVICE)
            else "On a CPU nothing is compiled: the speed-up is that of the C++ kernels and, where the"
            " processor has instructions for it, bf16."
        )


def _peak(row: Row) -> str:
    if not row.info["peak_bytes"]:
        return "not available"
    return f"{row.info['peak_bytes'] / 2**20:,.0f} MiB"


def _measured(row: Row) -> str:
    operations = row.info["operations"]
    rounds = f"{len(row.seconds)} rounds of {operations} iteration"
    if operations > 1:
        rounds += "s"
    return rounds


def _rates(row: Row, count: float) -> Spread:
    time = Spread.of(row.seconds)
    amount = row.info["operations"] * count
    return Spread(amount / time.median, amount / time.most, amount / time.least, time.n)


@torch.inference_mode()
def draw(proof: Proof, batches: Sequence[Batch], header: Sequence[str]) -> Image.Image:
    """Return one image with the samples and their translations by both providers.

    The lines of ``header`` are above them.
    """
    columns: dict[str, list[Any]] = {}
    for direction, name in proof.config.recipe.directions.items():
        side, other = direction.split("to")
        shown = torch.cat([batch.images[side] for batch in batches])[:SHOWN]
        columns[side] = _enlarged(to_pixels(shown))
        for provider, step in proof.steps.items():
            by = "fastcyclegan" if PROVIDERS[provider].ours else "official order"
            translated = to_pixels(_translated(step, name, shown))
            columns[f"{side} to {other}, {by}"] = _enlarged(translated)
    grid = draw_grid(columns)
    font = ImageFont.load_default(13)
    longest = max(font.getlength(line) for line in header)
    width = max(grid.width, math.ceil(longest) + 8)
    sheet = Image.new("RGB", (width, grid.height + 18 * len(header) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for n, line in enumerate(header):
        pen.text((4, 4 + 18 * n), line, fill="black", font=font)
    sheet.paste(grid, (0, 18 * len(header) + 8))
    return sheet


def _enlarged(pixels: Any) -> list[Any]:
    """Return images [N, H, W, C] with each pixel repeated until height and width are at least SIDE."""
    times = -(-SIDE // pixels.shape[1])
    return list(np.repeat(np.repeat(pixels, times, 1), times, 2))


def _translated(step: TrainStep, name: str, images: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=step.precision == "bf16"):
        return step.nets[name](images).float()


def header_of(proof: Proof, size: int, steps: int) -> list[str]:
    """Return the lines of text above the grid of images."""
    about = machine()
    official, ours = proof.rows
    worst = max(proof.differences[ours.provider], key=lambda d: d.error / d.allowed)
    ratio = speed_up(ours, official)
    faster = f"{ratio:.2f} times as fast"
    if ratio.least < 1 < ratio.most:
        faster += ", within the noise of this machine"
    rates = f"{_rates(official, 1).median:.3g} it/s official, {_rates(ours, 1).median:.3g} it/s fastcyclegan"
    nearest = f"{worst.quantity}, error {worst.error:.1e} against float64, allowed {worst.allowed:.1e}"
    start = f"images after {steps} iterations of both from the same weights and samples;"
    return [
        f"{proof.config.recipe.title} training, {size}x{size}, batch 1: {rates}, {faster}",
        f"parity holds; closest to its limit: {nearest}",
        f"{about['hardware']}, torch {about['torch']}, {about['date']}; {start}",
        "the networks are still untrained: what matters is that both sides produce the same images",
    ]
