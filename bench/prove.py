"""Check parity and compare training speed on your own machine and images.

    python scripts/prove.py --data_A photos --data_B paintings

Two providers train from the same weights on the same samples: the official training step as people usually
run it, and fastcyclegan as ``scripts/train.py --compile`` runs it. First, each is compared with the official
training step in float64. Then they are timed, taking turns in random order. If parity fails, no speed is
shown.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.baselines import compared_config, plain_networks
from bench.compile_costs import code_of, remember_compiled, seconds_to_compile
from bench.figures import Row
from bench.flat_images import Undecided, deviation, flat_images, join_names
from bench.machine import DEVICE, PeakMemory, machine
from bench.parity import EXACT, Judge, least_size, require_decisive
from bench.proof import Proof, differences_table, draw, header_of, speed_table
from bench.providers import PROVIDERS, TrainStep, train_step
from bench.timing import Entrant, Unavailable, builders_of, race
from fastcyclegan.config import DataConfig, ModelSettings, TrainConfig
from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.loader import Loader, sources_of
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.pixels import save_image
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import Images, find_images
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.testing import random_batch

# Parity is checked after STEPS iterations; training cycles through INPUTS samples.
STEPS, INPUTS = {"cpu": 2, "cuda": 4}, 8
# At most this many samples are read in search of samples without single-colour images.
MAX_SAMPLES = 256
ROUNDS, STRIDE = {"cpu": 20, "cuda": 15}, {"cpu": 1, "cuda": 10}
# The possible image sizes on a CPU, each with a limit in seconds. A size is chosen if an iteration of the
# official training step at 64x64 takes less than its limit; the whole proof then takes about a minute.
SIZES, TRIED_SIZE = {128: 0.6, 96: 1.4, 64: math.inf}, 64


def batches_of(
    options: argparse.Namespace, config: TrainConfig, size: int, log: Callable[[str], None]
) -> tuple[list[Batch], str]:
    """Return the samples that both providers train on, and a description of their source.

    Raises UserError if the images cannot be read, or if no sample is without a single-colour image.
    """
    recipe = config.make_recipe()
    with tempfile.TemporaryDirectory() as folder:
        data, origin = _data_of(options, config.data, size, Path(folder))
        images = find_images(data, options.seed, log, None, recipe.requirements, recipe.layouts)
        count_A, count_B = len(images.train_A), len(images.train_B)
        plan = Plan(
            options.seed,
            count_A,
            count_A if images.is_paired else count_B,
            numbers=recipe.numbers_per_sample,
            paired=images.is_paired,
        )
        sources = sources_of(images, data, recipe.requirements)
        varied, flat = varied_samples(FolderLoader(sources, plan, torch.device("cpu")))
    if not varied:
        raise UserError(
            f"cannot check parity: each of the {MAX_SAMPLES} samples tried contains an image of a single"
            f" colour: {join_names(flat)}"
        )
    if flat:
        log(f"skipped, because parity cannot be checked on images of a single colour: {join_names(flat)}")
    moved = [batch.with_images(lambda images: images.to(DEVICE)) for batch in varied]
    return moved, f"{_counted(images)} (not counting held-out images) from {origin}"


def _data_of(
    options: argparse.Namespace, defaults: DataConfig, size: int, folder: Path
) -> tuple[DataConfig, str]:
    """Return the settings of the images of ``size`` x ``size``, and a description of their source.

    Without images in ``options``, the built-in ones are drawn into ``folder``, in the layout of ``defaults``.
    """
    if defaults.dataset_mode == "single" and options.dataroot is None:
        raise UserError(f"--model {options.model} trains on single images: give their folder as --dataroot")
    data = dataclasses.replace(
        defaults,
        dataroot=options.dataroot,
        data_A=options.data_A,
        data_B=options.data_B,
        skip_bad_images=True,
        load_size=math.ceil(size * 286 / 256),
        crop_size=size,
    )
    if options.data_A is not None:
        return data, f"{options.data_A} and {options.data_B}"
    if options.dataroot is not None:
        return data, str(options.dataroot)
    builtin.write(folder, options.seed, paired=defaults.dataset_mode == "aligned")
    return dataclasses.replace(data, dataroot=folder), "the built-in shapes"


def _counted(images: Images) -> str:
    count_A, count_B = len(images.train_A), len(images.train_B)
    if images.layout == "single":
        return f"{count_A} images"
    return f"{count_A} pairs" if images.is_paired else f"{count_A} and {count_B} images"


def varied_samples(loader: Loader) -> tuple[list[Batch], list[str]]:
    """Return INPUTS samples without flat images, and the paths of the flat images that were skipped.

    Samples with the most contrast come first, because parity is checked on the first ones. If MAX_SAMPLES
    samples contain fewer than INPUTS suitable ones, those are repeated. If they contain none, the list is
    empty.
    """
    varied: list[Batch] = []
    flat: list[str] = []
    with contextlib.closing(loader.batches(0, MAX_SAMPLES)) as batches:
        for batch in batches:
            paths = flat_images([batch])
            if paths:
                flat += paths
            else:
                varied.append(batch)
            if len(varied) == INPUTS:
                break
    varied.sort(key=_least_deviation, reverse=True)
    return list(itertools.islice(itertools.cycle(varied), INPUTS)), flat


def _least_deviation(batch: Batch) -> float:
    return min(deviation(image) for images in batch.images.values() for image in images)


def suitable_size(config: TrainConfig) -> tuple[int, str]:
    """Choose an image size with which the proof takes about a minute. Returns it with the reason."""
    required = config.make_recipe().requirements
    multiple = required.size_multiple
    if DEVICE == "cuda":
        return math.ceil(256 / multiple) * multiple, "the default size"
    if TRIED_SIZE % multiple:
        return least_size(config), "the smallest size that these networks accept; --size overrides it"
    step = train_step("official", plain_networks(config), DEVICE, config)
    plan = Plan(0, 9, 9, numbers=config.make_recipe().numbers_per_sample)
    batch = random_batch(TRIED_SIZE, plan, 0, required.channels)
    step.run(batch)
    start = time.perf_counter()
    step.run(batch)
    seconds = time.perf_counter() - start
    size = next(size for size, most in SIZES.items() if seconds < most and size % multiple == 0)
    slow = f"an iteration of the official training step at {TRIED_SIZE}x{TRIED_SIZE} takes {seconds:.1f} s"
    return size, f"chosen because {slow} here; --size overrides it"


def prove(
    config: TrainConfig,
    batches: Sequence[Batch],
    ours: str,
    end: float,
    fault: bool,
    log: Callable[[str], None],
) -> Proof:
    """Compare both providers with float64, then time them alternately.

    Timing ends when the monotonic clock reaches ``end``. If parity fails, the proof has no rows. Raises
    Undecided if the images cannot show whether parity holds.
    """
    nets = plain_networks(config)
    judge = Judge(nets, batches[: STEPS[DEVICE]], DEVICE, config)
    proof = Proof(config, judge.float64_difference(), {}, [], {})
    code = code_of("step", batches[0].A.shape[2], 1, config)
    entrants = {}
    for name in ("official", ours):
        memory = PeakMemory()
        log(f"{PROVIDERS[name].title}: comparing {STEPS[DEVICE]} iterations with float64")
        step = train_step(name, nets, DEVICE, config, fault=fault and PROVIDERS[name].ours)
        first = judge.first_iterations(name, step, memory)
        remember_compiled(name, code, DEVICE)
        proof.differences[name], proof.steps[name] = first.differences, step
        info = {"precision": step.precision, "peak_bytes": first.peak_bytes, "first_s": first.seconds[0]}
        entrants[name] = _entrant(step, batches, info)
    if proof.exact <= EXACT:
        require_decisive(proof.differences[ours], judge.batches)
    if proof.passes:
        log("parity holds; timing both alternately")
        # Compile time does not count against the limit, because later runs do not have it.
        seconds_left = end + entrants[ours].info["first_s"] - time.monotonic()
        outcomes = race(builders_of(entrants, lambda name: entrants[name]), ROUNDS[DEVICE], seconds_left)
        for name, outcome in outcomes.items():
            if outcome.error is not None:
                raise outcome.error
            proof.rows.append(Row("prove.py", "", name, outcome.seconds, outcome.info))
    return proof


def _entrant(step: TrainStep, batches: Sequence[Batch], info: dict[str, Any]) -> Entrant:
    """Return ``step`` ready to be timed; its first iterations have already warmed it up.

    Both providers run the same number of iterations, so that their images can be compared.
    """
    stride, numbers = STRIDE[DEVICE], iter(range(STEPS[DEVICE], 10**9))

    def run() -> None:
        for _ in range(stride):
            step.run(batches[next(numbers) % len(batches)])

    pictures = sum(len(images) for images in batches[0].images.values())
    info |= {"operations": stride, "pictures": pictures * stride}
    return Entrant(run, info=info, cold=True)


# --- The command line ---------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prove.py", description=str(__doc__).split("\n\n")[0])
    _add_images(parser)
    parser.add_argument(
        "--size", type=int, help="image size in pixels (default: 256 on a GPU, 64 to 128 without one)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=60,
        help=(
            "time limit in seconds, not counting compilation; the parity check and 3 timed rounds always run"
            " to the end (default: %(default)s)"
        ),
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("proof.png"),
        metavar="PNG",
        help="image file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--no_compile", "--no-compile", action="store_true", help="run fastcyclegan without --compile"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--plant-fault",
        action="store_true",
        help="make fastcyclegan compute a wrong result (used by the tests)",
    )
    options = parser.parse_args(arguments)
    _check(options, parser)
    return options


def _add_images(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is trained, and on which images."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=ModelSettings.model,
        help="recipe to train, one with an official training step (default: %(default)s)",
    )
    parser.add_argument(
        "--dataroot",
        type=Path,
        metavar="DIR",
        help="dataset folder, as for train.py (default: built-in shapes)",
    )
    parser.add_argument(
        "--data_A",
        "--data-A",
        type=Path,
        metavar="DIR",
        help="folder of domain A, in place of --dataroot (default: built-in shapes)",
    )
    parser.add_argument(
        "--data_B", "--data-B", type=Path, metavar="DIR", help="folder of domain B, given with --data_A"
    )


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if (options.data_A is None) != (options.data_B is None):
        parser.error("--data_A and --data_B must be given together")
    if options.dataroot is not None and options.data_A is not None:
        parser.error("give either --dataroot, or --data_A and --data_B, but not both")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, got {options.seed}")
    if not options.seconds > 0:
        parser.error(f"--seconds must be more than 0, got {options.seconds:g}")
    if options.output.suffix.lower() != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output must be a .png file in an existing folder, got {options.output}")
    written = options.output
    if not written.exists():
        written = written.parent
    if not os.access(written, os.W_OK) or options.output.is_dir():
        parser.error(f"--output {options.output}: no permission to write there, or it is a folder")


def _check_size(size: int, config: TrainConfig) -> None:
    """Raise UserError if parity of the networks of ``config`` cannot be checked on images of ``size``."""
    multiple, least = config.make_recipe().requirements.size_multiple, least_size(config)
    if size < least or size % multiple:
        raise UserError(f"--size must be a multiple of {multiple}, at least {least}, got {size}")


def _compiled(options: argparse.Namespace, config: TrainConfig, size: int, log: Callable[[str], None]) -> str:
    """Return the name of fastcyclegan's provider: with --compile, unless it is turned off or impossible.

    ``log`` receives a line if compiling will take long, or the reason why it is not possible.
    """
    if options.no_compile:
        return "ours"
    try:
        PROVIDERS["ours_compiled"].require(DEVICE)
    except Unavailable as reason:
        log(f"not compiled: {reason}")
        return "ours"
    if seconds_to_compile("ours_compiled", code_of("step", size, 1, config), DEVICE) > 60:
        log("compiling fastcyclegan first, which can take two minutes; later runs reuse the compiler's cache")
    return "ours_compiled"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of scripts/prove.py.

    Returns 1 if parity fails, and 2 for bad input and for images on which parity cannot be checked.
    """
    options = parse(arguments)

    def log(line: str) -> None:
        print(line, flush=True)

    try:
        return _main(options, log)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Undecided as reason:
        print(f"error: cannot check parity: {reason}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace, log: Callable[[str], None]) -> int:
    started = time.monotonic()
    config = compared_config(options.model)
    if options.size is not None:
        _check_size(options.size, config)
    about = machine()
    log(
        f"{about['hardware']}; torch {about['torch']}, Triton {about['triton']}, Python {about['python']},"
        f" commit {about['commit']}"
    )
    if options.size is not None:
        size, reason = options.size, "set by --size"
    else:
        size, reason = suitable_size(config)
    batches, origin = batches_of(options, config, size, log)
    recipe = config.make_recipe()
    log(f"training {recipe.title} at {size}x{size} ({reason}), batch 1, {recipe.architecture}; {origin}")
    ours = _compiled(options, config, size, log)
    proof = prove(config, batches, ours, started + options.seconds, options.plant_fault, log)
    log("")
    for line in differences_table(proof, ours, STEPS[DEVICE]):
        log(line)
    if not proof.passes:
        log("\nPARITY FAILS: the results differ from the official mathematics, so no speed is shown")
        return 1
    log("")
    for line in speed_table(proof):
        log(line)
    iterations = STEPS[DEVICE] + len(proof.rows[0].seconds) * STRIDE[DEVICE]
    try:
        save_image(draw(proof, batches, header_of(proof, size, iterations)), options.output)
    except OSError as error:
        raise UserError(f"{options.output}: cannot write this file: {system_reason(error)}") from None
    log(f"\nimages of both sides written to {options.output}; total time {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
