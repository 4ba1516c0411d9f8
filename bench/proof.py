"""What a proof has found, and how it is shown: two tables, of differences and of speed, and an image."""

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
from bench.parity import EXACT, EXACT_STEPS, Difference
from bench.providers import PROVIDERS, TrainStep
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.pixels import draw_grid, to_pixels

# So many samples are shown, each side of at least so many pixels.
SHOWN, SIDE = 3, 128


@dataclasses.dataclass
class Proof:
    """What was found: verdicts on parity by provider, rows of times, and the networks that were timed."""

    exact: float
    """How far ours is from the official order where both are in float64."""
    differences: dict[str, list[Difference]]
    rows: list[Row]
    steps: dict[str, TrainStep]

    @property
    def holds(self) -> bool:
        found = list(itertools.chain.from_iterable(self.differences.values()))
        return self.exact <= EXACT and all(difference.holds for difference in found)


def differences_table(proof: Proof, ours: str, steps: int) -> Iterator[str]:
    """Yield how far ours is from float64 after ``steps`` iterations, beside how far the dtype alone takes the
    official order.
    """
    precision = proof.steps[ours].precision
    verdict = _verdict(proof.exact <= EXACT)
    bound = f"relative difference {proof.exact:.1e} at most, allowed {EXACT:.0e}  {verdict}"
    yield f"both in float64, {EXACT_STEPS} iterations on 32x32 of each image: {bound}\n"
    heads = (
        f"after {steps} iterations, from float64",
        f"ours, {precision}",
        f"official, {precision}",
        "allowed",
        "",
    )
    yield "{:<40}{:>14}{:>16}{:>12}  {}".format(*heads)
    for d in proof.differences[ours]:
        verdict = _verdict(d.holds)
        yield f"  {d.what:<38}{d.found:>14.2e}{d.of_the_dtype:>16.2e}{d.allowed:>12.2e}  {verdict}"
        yield f"  {'':<6}{'largest single one':<32}{d.largest:>14.2e}{d.largest_of_the_dtype:>16.2e}"
    yield (
        "Relative errors, and the largest of any one number. Gradients: Adam's first moments; the way of the"
        " weights: what updates added,"
    )
    yield "in relative errors each times its gradient."
    if precision == "fp32":
        yield (
            "In fp32 some ReLUs come out on the other side of zero, by chance: 3e-02 is allowed after a"
            " derivative, 3e-01 after Adam."
        )


def _verdict(holds: bool) -> str:
    if holds:
        return "holds"
    return "FAILS"


def speed_table(proof: Proof) -> Iterator[str]:
    """Yield rates, ratio and memory of both."""
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
    yield row_of("times as fast", lambda row: "1" if row is anchor else f"{speed_up(row, anchor):.2f}")
    yield row_of("peak memory", _peak)
    yield row_of("first iteration", lambda row: duration(Spread(row.info["first_s"], 0, 0, 1)))
    yield row_of("measured", _measured)
    yield (
        "Medians, and the least to the most; times as fast: of the ratios of rounds that were run one after"
        " the other."
    )


def _peak(row: Row) -> str:
    if not row.info["peak_bytes"]:
        return "not seen here"
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
    """Return the images and what both networks make of them, under the ``header``."""
    columns: dict[str, list[Any]] = {}
    for side, other, name in (("A", "B", "G_AB"), ("B", "A", "G_BA")):
        shown = torch.cat([getattr(batch, side) for batch in batches])[:SHOWN]
        columns[side] = _enlarged(to_pixels(shown))
        for provider, step in proof.steps.items():
            by = "ours" if PROVIDERS[provider].ours else "official order"
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
    """Return images [N, H, W, C] each pixel so many times that a side has at least SIDE."""
    times = -(-SIDE // pixels.shape[1])
    return list(np.repeat(np.repeat(pixels, times, 1), times, 2))


def _translated(step: TrainStep, name: str, images: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=step.precision == "bf16"):
        return step.nets[name](images).float()


def header_of(proof: Proof, size: int, steps: int) -> list[str]:
    """Return what the image says above its grid."""
    about = machine()
    official, ours = proof.rows
    worst = max(proof.differences[ours.provider], key=lambda d: d.found / d.allowed)
    ratio = speed_up(ours, official)
    faster = f"{ratio:.2f} times as fast"
    if ratio.least < 1 < ratio.most:
        faster += ", too noisy a machine to tell"
    rates = f"{_rates(official, 1).median:.3g} it/s official, {_rates(ours, 1).median:.3g} it/s ours"
    nearest = f"{worst.what}, {worst.found:.1e} from float64, {worst.allowed:.1e} allowed"
    start = f"both after {steps} iterations from the same weights and samples"
    return [
        f"CycleGAN training, {size}x{size}, batch 1: {rates}, {faster}",
        f"parity holds; nearest to its bound: {nearest}",
        f"{about['hardware']}, torch {about['torch']}, {about['date']}; {start},",
        "which is noise as yet: what counts is that both make the same of it",
    ]
