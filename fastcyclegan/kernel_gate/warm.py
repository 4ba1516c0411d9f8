"""Fill Triton's cache ahead of time with all kernels of a training run and its translations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastcyclegan.cli import parse_train
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools import compile_ahead
from fastcyclegan.devtools.compile_kernels import jobs_of
from fastcyclegan.engine import Engine
from fastcyclegan.engine.ahead import Progress, dry_translation
from fastcyclegan.errors import UserError
from fastcyclegan.kernels._launch import Chip
from fastcyclegan.kernels._tune import SECONDS_PER_MEASUREMENT
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.testing import random_batch


def config_of(run: str, flags: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run in folder ``run``, with the ``flags`` of train.py applied.

    If ``run`` is "", the configuration is defined by the flags only. Raises UserError if the folder is not
    that of a run, if a flag names another run, or if the flags are invalid.
    """
    if not run:
        return parse_train(flags)
    folder = Path(run).resolve()
    if not (folder / "config.json").is_file():
        raise UserError(f"--warm: {run} is not a run folder: it has no config.json")
    for flag in flags:
        name = flag.partition("=")[0].replace("-", "_")
        if name in ("__name", "__checkpoints_dir", "__continue_train"):
            raise UserError(f"--warm: {flag} and {run} both name a run; give only one of them")
    same_run = ["--continue_train", "--name", folder.name, "--checkpoints_dir", str(folder.parent)]
    return parse_train([*same_run, *flags])


def warm(
    config: TrainConfig,
    chip: Chip,
    log: Callable[[str], object] = print,
    processes: int | None = None,
    progress: Progress = lambda count, total, text: None,
) -> bool:
    """Compile the kernels that a run of ``config`` launches on ``chip``, unless they are in Triton's cache.

    Returns whether all of them compiled. Assumes full batches, and images of the crop size. ``log`` receives
    a line about each stage, and ``progress`` is called after each kernel. Raises UserError if the networks of
    ``config`` use no kernels.
    """
    started, recipe, precision = time.monotonic(), config.make_recipe(), _precision(config)
    height, width = config.data.crop
    batch = f"batch {config.data.batch_size}, {width}x{height}, {precision}"
    networks = f"{recipe.architecture}, {batch}"
    needed = jobs_of(lambda: _run(config, precision), chip)
    if not needed.jobs:
        setup = f"{networks}, impl {config.model.impl}"
        raise UserError(f"--warm: there are no kernels to compile: PyTorch computes {setup}")
    summary = f"{networks}: {len(needed.jobs)} kernels for sm_{chip.capability}"
    with compile_ahead.exclusive():
        jobs = compile_ahead.missing(needed.jobs)
        if not jobs:
            log(f"{summary}, all of them already in Triton's cache")
            return True
        if processes is None:
            processes = compile_ahead.processes_for(len(jobs))
        seconds = compile_ahead.predicted_seconds(len(jobs), processes)
        missing = f"{len(jobs)} that are missing from Triton's cache"
        log(f"{summary}; compiling {missing} in {processes} processes, about {seconds:.0f} s")

        def report(count: int, total: int) -> None:
            if count > 0:
                progress(count, total, f"{count} of {total} kernels")

        outcome = compile_ahead.compile_ahead(jobs, report, processes)
    for kernel, error in outcome.failures:
        if kernel:
            log(f"{kernel} failed to compile: {error}")
        else:
            log(f"the compiler failed: {error}")
    log(f"compiled {outcome.compiled} in {time.monotonic() - started:.1f} s; {timings(needed.choices)}")
    return not outcome.failures


def _precision(config: TrainConfig) -> str:
    """Return the precision of a run of ``config`` on a GPU that the kernels support."""
    if config.run.precision == "fp32":
        return "fp32"
    return "bf16"


def timings(choices: dict[str, int]) -> str:
    """Return a note about the tile sizes that the first iteration will time.

    ``choices`` maps the name of each tuned choice to its number of tile sizes.
    """
    tiles = sum(choices.values())
    seconds = tiles * SECONDS_PER_MEASUREMENT
    count = f"{tiles} tiles for {len(choices)} choices"
    return f"the first iteration will time {count}, about {seconds:.0f} s"


def _run(config: TrainConfig, precision: str) -> None:
    """Run a training iteration of ``config`` and a translation in each direction. Call this in a dry run."""
    size, recipe, cpu = config.data.crop, config.make_recipe(), torch.device("cpu")
    with as_on_gpu():
        nets = recipe.build_networks()
        options = dataclasses.replace(config.engine, graph="off")
        engine = Engine(recipe, nets, config.optim, cpu, precision, options=options)
    channels = dict(zip(config.data.sides, recipe.requirements.channels, strict=False))
    plan = Plan(0, 10**6, 10**6, config.data.batch_size, numbers=recipe.numbers_per_sample)
    engine.dry_step(random_batch(size, plan, 0, tuple(channels.values())))
    for direction, name in recipe.directions.items():
        image = torch.zeros(1, channels[direction[0]], *size, dtype=torch.float32)
        image = image.to(memory_format=torch.channels_last)
        dry_translation(engine.nets[name], image, engine.choices.dtype)
