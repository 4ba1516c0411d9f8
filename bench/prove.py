"""The proof of speed and parity on your own machine and pictures: python scripts/prove.py --data_A photos
--data_B paintings

The official order, as people run it, and ours, as ``scripts/train.py --compile`` runs it, train from the same
weights on the same samples. First both are held to the official order in float64, then they are timed in
turns in random order. Where parity fails, no speed is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench.figures import Row, Spread, anchor_of, duration, speed_up
from bench.flat_images import Undecided, deviation, flat_images, listed
from bench.machine import DEVICE, PeakMemory, machine
from bench.parity import EXACT, EXACT_STEPS, Difference, Judge, require_telling
from bench.providers import (
    PROVIDERS,
    TrainStep,
    code_of,
    plain_networks,
    remember_compiled,
    seconds_to_compile,
    train_step,
)
from bench.timing import Entrant, Unserved, race
from fastcyclegan.config import DataConfig, LossConfig, ModelConfig
from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.image_file import Fit
from fastcyclegan.data.loader import Loader, Source
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.pixels import draw_grid, save_image, to_pixels
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import Needs, find_pictures
from fastcyclegan.errors import UserError

# Parity after so many iterations; so many samples go round; so many are shown.
STEPS, INPUTS, SHOWN, SIDE = {"cpu": 2, "cuda": 4}, 8, 3, 128
# Below it a discriminator's last norm has maps of 2 x 2: where their four values are nearly alike, rounding
# decides what comes out.
LEAST_SIZE = 32
# Of so many samples, those with an image of one colour all over are passed by.
LOOKED = 256
ROUNDS, STRIDE = {"cpu": 20, "cuda": 15}, {"cpu": 1, "cuda": 10}
NETWORKS = ModelConfig()
# On a CPU, the side of the pictures by the seconds that an iteration of the official order takes at 64x64: so
# that it all takes a minute.
SIZES = {128: 0.6, 96: 1.4, 64: math.inf}


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
        return self.exact <= EXACT and all(d.holds for found in self.differences.values() for d in found)


def batches_of(options: argparse.Namespace, size: int, say: Callable[[str], None]) -> tuple[list[Batch], str]:
    """Return the samples that both train on, and where they are from. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(
            data_A=options.data_A,
            data_B=options.data_B,
            skip_bad_images=True,
            load_size=math.ceil(size * 286 / 256),
            crop_size=size,
        )
        where = f"{options.data_A} and {options.data_B}"
        if options.data_A is None:
            builtin.write(Path(folder), options.seed)
            data = dataclasses.replace(data, dataroot=Path(folder), data_A=None, data_B=None)
            where = "the built-in shapes"
        found = find_pictures(
            data, options.seed, say, None, Needs(NETWORKS.size_multiple, NETWORKS.least_side)
        )
        fit = Fit.of(data)
        a, b = (Source(paths, fit, found.checked) for paths in (found.train_A, found.train_B))
        plan = Plan(options.seed, len(found.train_A), len(found.train_B))
        loader = FolderLoader(a, b, plan, torch.device("cpu"))
        lively, flat = lively_samples(loader)
    if not lively:
        raise UserError(
            f"cannot decide: none of {LOOKED} samples is without an image of one colour all over:"
            f" {listed(flat)}"
        )
    if flat:
        say(f"passed by, because an image of one colour all over decides nothing: {listed(flat)}")
    moved = [dataclasses.replace(batch, A=batch.A.to(DEVICE), B=batch.B.to(DEVICE)) for batch in lively]
    return (
        moved,
        (
            f"{len(found.train_A)} and {len(found.train_B)} pictures (without those that training holds out),"
            f" {where}"
        ),
    )


def lively_samples(loader: Loader) -> tuple[list[Batch], list[str]]:
    """Return INPUTS samples without flat images, those that vary most first: parity is judged on these. And
    the paths of flat images.

    Where there are fewer among LOOKED samples they come round again; where there is none, none is returned.
    """
    lively: list[Batch] = []
    flat: list[str] = []
    with contextlib.closing(loader.batches(0, LOOKED)) as batches:
        for batch in batches:
            found = flat_images([batch])
            flat += found
            lively += [] if found else [batch]
            if len(lively) == INPUTS:
                break
    lively.sort(key=lambda batch: min(deviation(image) for image in (*batch.A, *batch.B)), reverse=True)
    return list(itertools.islice(itertools.cycle(lively), INPUTS)), flat


def suitable_size() -> tuple[int, str]:
    """Return the side of the pictures that makes this take a minute, and why."""
    if DEVICE == "cuda":
        return 256, "the default size"
    step = train_step("official", plain_networks(NETWORKS), DEVICE, config=NETWORKS)
    noise = torch.rand(1, 3, 64, 64) * 2 - 1
    plan = Plan(0, 9, 9)
    batch = Batch(noise, noise, [""], [""], [plan.sample(1, 0)])
    step.run(batch)
    start = time.perf_counter()
    step.run(batch)
    seconds = time.perf_counter() - start
    size = next(size for size, most in SIZES.items() if seconds < most)
    return (
        size,
        (
            f"because an iteration of the official order at 64x64 takes {seconds:.1f} s here; --size asks for"
            " another"
        ),
    )


def prove(batches: Sequence[Batch], ours: str, end: float, fault: bool, say: Callable[[str], None]) -> Proof:
    """Hold both to float64, then time them in turns until the clock says ``end``. Without parity there are no
    rows. Raises Undecided.
    """
    nets = plain_networks(NETWORKS)
    judge = Judge(nets, batches[: STEPS[DEVICE]], DEVICE, LossConfig(), NETWORKS)
    proof = Proof(judge.mathematics(), {}, [], {})
    size = batches[0].A.shape[2]
    entrants = {}
    for name in ("official", ours):
        memory = PeakMemory()
        say(f"{PROVIDERS[name].title}: {STEPS[DEVICE]} iterations, held to the official order in float64")
        step = train_step(name, nets, DEVICE, config=NETWORKS, fault=fault and PROVIDERS[name].ours)
        first = judge.first_iterations(name, step, memory)
        remember_compiled(name, code_of("step", size, 1, NETWORKS))
        proof.differences[name], proof.steps[name] = first.differences, step
        info = {"precision": step.precision, "peak_bytes": first.peak_bytes, "first_s": first.seconds[0]}
        entrants[name] = _entrant(step, batches, info)
    if proof.exact <= EXACT:
        require_telling(proof.differences[ours], judge.batches)
    if proof.holds:
        say("parity holds; timing both in turns")
        # Compiling is not counted: the next time it is not there.
        left = end + entrants[ours].info["first_s"] - time.monotonic()
        outcomes = race({name: lambda e=e: e for name, e in entrants.items()}, ROUNDS[DEVICE], left)  # type: ignore[misc]
        for name, outcome in outcomes.items():
            if outcome.error is not None:
                raise outcome.error
            proof.rows.append(Row("prove.py", "", name, outcome.seconds, outcome.info))
    return proof


def _entrant(step: TrainStep, batches: Sequence[Batch], info: dict[str, Any]) -> Entrant:
    """Return a step that is warm by its first iterations: both run as many, so that their pictures can be
    compared.
    """
    numbers = iter(range(STEPS[DEVICE], 10**9))

    def run() -> None:
        for _ in range(STRIDE[DEVICE]):
            step.run(batches[next(numbers) % len(batches)])

    return Entrant(
        run,
        info={**info, "operations": STRIDE[DEVICE], "pictures": 2 * len(batches[0].A) * STRIDE[DEVICE]},
        cold=True,
    )


# --- What is shown ------------------------------------------------------------------------------------------


def differences_table(proof: Proof, ours: str) -> Iterator[str]:
    """Yield how far ours is from float64, beside how far the dtype alone takes the official order."""
    precision, steps = proof.steps[ours].precision, STEPS[DEVICE]
    verdict = "holds" if proof.exact <= EXACT else "FAILS"
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
        verdict = "holds" if d.holds else "FAILS"
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


def speed_table(proof: Proof) -> Iterator[str]:
    """Yield rates, ratio and memory of both."""
    anchor = anchor_of(proof.rows)
    columns = {PROVIDERS[row.provider].title + f" ({row.info['precision']})": row for row in proof.rows}
    width = max(map(len, columns)) + 4
    yield " " * 18 + "".join(f"{title:<{width}}" for title in columns)

    def line(name: str, cell: Callable[[Row], str]) -> str:
        return f"{name:<18}" + "".join(f"{cell(row):<{width}}" for row in columns.values())

    yield line("iterations/s", lambda row: f"{_rates(row, 1):.3g}")
    yield line("images/s", lambda row: f"{_rates(row, row.info['pictures'] / row.info['operations']):.3g}")
    yield line("times as fast", lambda row: "1" if row is anchor else f"{speed_up(row, anchor):.2f}")
    yield line(
        "peak memory",
        lambda row: (
            f"{row.info['peak_bytes'] / 2**20:,.0f} MiB" if row.info["peak_bytes"] else "not seen here"
        ),
    )
    yield line("first iteration", lambda row: duration(Spread(row.info["first_s"], 0, 0, 1)))
    yield line(
        "measured",
        lambda row: (
            f"{len(row.seconds)} rounds of {row.info['operations']}"
            f" iteration{'s' * (row.info['operations'] > 1)}"
        ),
    )
    yield (
        "Medians, and the least to the most; times as fast: of the ratios of rounds that were run one after"
        " the other."
    )


def _rates(row: Row, count: float) -> Spread:
    time = Spread.of(row.seconds)
    amount = row.info["operations"] * count
    return Spread(amount / time.median, amount / time.most, amount / time.least, time.n)


@torch.inference_mode()
def draw(proof: Proof, batches: Sequence[Batch], header: Sequence[str]) -> Image.Image:
    """Return the pictures and what both networks make of them, under the ``header``."""
    columns: dict[str, list[Any]] = {}
    for side, name in (("A", "G_AB"), ("B", "G_BA")):
        shown = torch.cat([getattr(batch, side) for batch in batches])[:SHOWN]
        columns[side] = _enlarged(to_pixels(shown))
        for provider, step in proof.steps.items():
            by = "ours" if PROVIDERS[provider].ours else "official order"
            columns[f"{side} to {'BA'[side == 'B']}, {by}"] = _enlarged(
                to_pixels(_translated(step, name, shown))
            )
    grid = draw_grid(columns)
    font = ImageFont.load_default(13)
    width = max(grid.width, math.ceil(max(font.getlength(line) for line in header)) + 8)
    sheet = Image.new("RGB", (width, grid.height + 18 * len(header) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for n, line in enumerate(header):
        pen.text((4, 4 + 18 * n), line, fill="black", font=font)
    sheet.paste(grid, (0, 18 * len(header) + 8))
    return sheet


def _enlarged(pixels: Any) -> list[Any]:
    """Return pictures [N, H, W, C] each pixel so many times that a side has at least SIDE."""
    times = -(-SIDE // pixels.shape[1])
    return list(np.repeat(np.repeat(pixels, times, 1), times, 2))


def _translated(step: TrainStep, name: str, images: Tensor) -> Tensor:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=step.precision == "bf16"):
        return step.nets[name](images).float()


def header_of(proof: Proof, size: int, steps: int) -> list[str]:
    """Return what the picture says above its grid."""
    about = machine()
    official, ours = proof.rows
    worst = max(proof.differences[ours.provider], key=lambda d: d.found / d.allowed)
    ratio = speed_up(ours, official)
    noisy = ", too noisy a machine to tell" if ratio.least < 1 < ratio.most else ""
    return [
        (
            f"CycleGAN training, {size}x{size}, batch 1: {_rates(official, 1).median:.3g} it/s official, "
            f"{_rates(ours, 1).median:.3g} it/s ours, {ratio:.2f} times as fast{noisy}"
        ),
        (
            f"parity holds; nearest to its bound: {worst.what}, {worst.found:.1e} from float64,"
            f" {worst.allowed:.1e} allowed"
        ),
        (
            f"{about['hardware']}, torch {about['torch']}, {about['date']}; both after {steps} iterations"
            " from the same weights and samples,"
        ),
        "which is noise as yet: what counts is that both make the same of it",
    ]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prove.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data_A", "--data-A", type=Path, metavar="DIR", help="pictures of A (default: built-in shapes)"
    )
    parser.add_argument("--data_B", "--data-B", type=Path, metavar="DIR", help="pictures of B")
    parser.add_argument(
        "--size", type=int, help="side of the pictures (default: 256 on a GPU, 64 to 128 without one)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help=(
            "until when rounds are timed, without compiling; parity and 3 rounds take what they take"
            " (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--output", type=Path, default=Path("proof.png"), metavar="PNG", help="default: %(default)s"
    )
    parser.add_argument(
        "--no_compile", "--no-compile", action="store_true", help="ours without torch.compile"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--plant-fault",
        action="store_true",
        help="let ours compute something else: the proof must fail (for the tests)",
    )
    options = parser.parse_args(arguments)
    if (options.data_A is None) != (options.data_B is None):
        parser.error("--data_A and --data_B belong together")
    if options.size is not None and (options.size < LEAST_SIZE or options.size % 4):
        parser.error(f"--size must be a multiple of 4, at least {LEAST_SIZE}, got {options.size}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, got {options.seed}")
    if not options.seconds > 0:
        parser.error("--seconds must be more than 0")
    if options.output.suffix.lower() != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output must be a .png in a folder that is there, got {options.output}")
    if (
        not os.access(options.output if options.output.exists() else options.output.parent, os.W_OK)
        or options.output.is_dir()
    ):
        parser.error(f"--output {options.output}: cannot write there")
    return options


def _compiled(options: argparse.Namespace, size: int, say: Callable[[str], None]) -> str:
    """Return the provider that is ours, and say what compiling will take, or why there is none."""
    if options.no_compile:
        return "ours"
    try:
        PROVIDERS["ours_compiled"].require(DEVICE)
    except Unserved as reason:
        say(f"not compiled: {reason}")
        return "ours"
    if seconds_to_compile("ours_compiled", code_of("step", size, 1, NETWORKS), DEVICE) > 60:
        say(
            "ours is compiled first, which may take two minutes; the next time it is taken from the"
            " compiler's cache"
        )
    return "ours_compiled"


def main(arguments: list[str] | None = None) -> int:
    """The command line of scripts/prove.py. Returns 1 where parity fails, 2 for bad input and for images that
    decide nothing.
    """
    options = parse(arguments)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        return _main(options, say)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Undecided as reason:
        print(f"error: cannot decide: {reason}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    began = time.monotonic()
    about = machine()
    say(
        f"{about['hardware']}; torch {about['torch']}, Triton {about['triton']}, Python {about['python']},"
        f" commit {about['commit']}"
    )
    size, why = (options.size, "as asked") if options.size else suitable_size()
    batches, where = batches_of(options, size, say)
    say(f"training at {size}x{size} ({why}), batch 1, {NETWORKS.netG}, identity on; {where}")
    ours = _compiled(options, size, say)
    proof = prove(batches, ours, began + options.seconds, options.plant_fault, say)
    say("")
    for line in differences_table(proof, ours):
        say(line)
    if not proof.holds:
        say("\nPARITY FAILS: what was computed is not the official mathematics, so no speed is shown")
        return 1
    say("")
    for line in speed_table(proof):
        say(line)
    iterations = STEPS[DEVICE] + len(proof.rows[0].seconds) * STRIDE[DEVICE]
    try:
        save_image(draw(proof, batches, header_of(proof, size, iterations)), options.output)
    except OSError as error:
        raise UserError(f"{options.output}: cannot write there: {error.strerror or error}") from None
    say(f"\n{options.output}: pictures by both; all of it took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
