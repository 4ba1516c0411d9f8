"""Triton's cache filled ahead of time: all that a training run of a configuration launches, and its
translations.
"""

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
from fastcyclegan.kernels._tune import SECONDS_A_MEASUREMENT
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.testing import random_batch


def config_of(run: str, flags: Sequence[str]) -> TrainConfig:
    """Return the configuration of the run in folder ``run``, "" for none, changed by ``flags`` of train.py.
    Raises UserError.
    """
    if not run:
        return parse_train(flags)
    folder = Path(run).resolve()
    if not (folder / "config.json").is_file():
        raise UserError(f"--warm: {run} is no folder of a run: it has no config.json")
    for flag in flags:
        name = flag.partition("=")[0].replace("-", "_")
        if name in ("__name", "__checkpoints_dir", "__continue_train"):
            raise UserError(f"--warm: {flag} names a run, and so does {run}: give one of them")
    same_run = ["--continue_train", "--name", folder.name, "--checkpoints_dir", str(folder.parent)]
    return parse_train([*same_run, *flags])


def warm(
    config: TrainConfig,
    chip: Chip,
    log: Callable[[str], object] = print,
    processes: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> bool:
    """Compile what a run of ``config`` launches on ``chip`` into Triton's cache, as far as the cache lacks
    it; whether all compiled.

    Batches are taken as full and images as large as they are cropped. ``say`` hears what was done,
    ``progress`` how far it is. Raises UserError for a configuration whose networks are not computed by the
    kernels.
    """
    started, model, precision, size = (
        time.monotonic(),
        config.model,
        _precision(config),
        config.data.crop_size,
    )
    batch = f"batch {config.data.batch_size}, {size}x{size}, {precision}"
    networks = f"{model.netG} and {model.netD}, {batch}"
    found = jobs_of(lambda: _run(config, precision), chip)
    if not found.jobs:
        how = f"{networks}, norm {model.norm}, impl {model.impl}"
        raise UserError(f"--warm: there are no kernels to compile: PyTorch computes {how}")
    here = f"{networks}: {len(found.jobs)} kernels for sm_{chip.capability}"
    with compile_ahead.alone():
        jobs = compile_ahead.missing(found.jobs)
        if not jobs:
            log(f"{here}, all are in Triton's cache")
            return True
        if processes is None:
            processes = compile_ahead.processes_for(len(jobs))
        seconds = compile_ahead.predicted_seconds(len(jobs), processes)
        lacking = f"{len(jobs)} that Triton's cache lacks"
        log(f"{here}, compiling {lacking} in {processes} processes, about {seconds:.0f} s")

        def tell(done: int, total: int) -> None:
            if done > 0:
                progress(done, total, f"{done} of {total} kernels")

        outcome = compile_ahead.compile_ahead(jobs, tell, processes)
    for kernel, error in outcome.failures:
        if kernel:
            log(f"{kernel} failed: {error}")
        else:
            log(f"the compiler failed: {error}")
    log(f"compiled {outcome.compiled} in {time.monotonic() - started:.1f} s; {timings(found.choices)}")
    return not outcome.failures


def _precision(config: TrainConfig) -> str:
    """Return what a run of ``config`` computes in on a GPU that has kernels."""
    if config.run.precision == "fp32":
        return "fp32"
    return "bf16"


def timings(choices: dict[str, int]) -> str:
    """Return what the first iteration still has to time."""
    tiles = sum(choices.values())
    seconds = tiles * SECONDS_A_MEASUREMENT
    count = f"{tiles} for {len(choices)} choices"
    return f"tiles to be timed by the first iteration: {count}, about {seconds:.0f} s"


def _run(config: TrainConfig, precision: str) -> None:
    """Run what a training run does, dry."""
    model, size = config.model, config.data.crop_size
    with as_on_gpu():
        recipe, cpu = make_recipe(config), torch.device("cpu")
        nets = recipe.build_networks(model)
        options = dataclasses.replace(config.engine, graph="off")
        engine = Engine(recipe, nets, config.optim, cpu, precision, options=options)
    sides = (model.input_nc, model.output_nc)
    engine.dry_step(random_batch(size, Plan(0, 10**6, 10**6, config.data.batch_size), 0, sides))
    for target, channels in zip(("B", "A"), sides, strict=True):
        name = recipe.generator(target)
        image = torch.zeros(1, channels, size, size).to(memory_format=torch.channels_last)
        dry_translation(engine.nets[name], image, engine.choices.dtype)
