"""Triton's cache filled ahead of time: all that a training run of a configuration launches, and its translations."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastcyclegan.cli import parse_train
from fastcyclegan.compile_kernels import jobs_of
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.engine.ahead import dry_step, dry_translation
from fastcyclegan.errors import UserError
from fastcyclegan.kernels import _ahead
from fastcyclegan.kernels._dispatch import as_on_gpu
from fastcyclegan.kernels._launch import Chip
from fastcyclegan.kernels._tune import SECONDS_A_MEASUREMENT
from fastcyclegan.recipes.cyclegan import CycleGAN, build_networks
from fastcyclegan.testing import random_batch


def config_of(run: str, flags: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run in folder ``run``, "" for none, changed by ``flags`` of train.py. Raises UserError."""
    if not run:
        return parse_train(flags)
    folder = Path(run)
    if not (folder / "config.json").is_file():
        raise UserError(f"--warm: {run} is no folder of a run: it has no config.json")
    named = ["--continue_train", "--name", folder.resolve().name, "--checkpoints_dir", str(folder.resolve().parent)]
    return parse_train([*named, *flags])


def warm(config: TrainConfig, chip: Chip, say: Callable[[str], object] = print, processes: int | None = None) -> bool:
    """Compile what a run of ``config`` launches on ``chip`` into Triton's cache, as far as the cache lacks it; whether all compiled.

    Batches are taken as full and images as large as they are cropped. ``say`` hears what was done. Raises UserError for a configuration
    whose networks are not computed by the kernels.
    """
    if config.model.impl == "reference":
        raise UserError("--warm: with --impl reference there are no kernels to compile")
    started = time.monotonic()
    found = jobs_of(lambda: _run(config), chip)
    jobs = _ahead.missing(found.jobs)
    here = f"{len(found.jobs)} kernels of an iteration and of translations for sm_{chip.capability}"
    if not jobs:
        say(f"{here}: all are in Triton's cache")
        return True
    count = processes or _ahead.processes_for(len(jobs))
    seconds = _ahead.predicted_seconds(len(jobs), count)
    say(f"{here}: compiling {len(jobs)} that Triton's cache lacks in {count} processes, about {seconds:.0f} s")
    outcome = _ahead.compile_ahead(jobs, processes=count)
    for kernel, error in outcome.failures:
        say(f"{kernel or 'the compiler'} failed: {error}")
    say(f"compiled {outcome.compiled} in {time.monotonic() - started:.1f} s; {timings(found.choices)}")
    return not outcome.failures


def timings(choices: dict[str, int]) -> str:
    """Return what the first iteration still has to time."""
    tiles = sum(choices.values())
    return f"tiles to be timed by the first iteration: {tiles} for {len(choices)} choices, about {tiles * SECONDS_A_MEASUREMENT:.0f} s"


def _run(config: TrainConfig) -> None:
    """Run what a training run does, dry."""
    model, size, precision = config.model, config.data.crop_size, config.run.precision
    with as_on_gpu():
        nets = build_networks(model)
        options = dataclasses.replace(config.engine, graph="off")
        recipe, cpu = CycleGAN.from_config(config), torch.device("cpu")
        engine = Engine(recipe, nets, config.optim, cpu, "fp32" if precision == "fp32" else "bf16", options=options)
    sides = (model.input_nc, model.output_nc)
    dry_step(engine, random_batch(size, Plan(0, 10**6, 10**6, config.data.batch_size), 0, sides))
    for name, channels in zip(("G_AB", "G_BA"), sides, strict=True):
        image = torch.zeros(1, channels, size, size).to(memory_format=torch.channels_last)
        dry_translation(engine.nets[name], image, engine.dtype)
