"""Start a run: its folder, its images, its engine and, if it is resumed, its training state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.checkpoints import run_files
from fastcyclegan.config import FIXED_SIZE, DataConfig, ModelConfig, TrainConfig
from fastcyclegan.data import builtin
from fastcyclegan.data.choose_loader import Choice, check_cache, choose, make_loader
from fastcyclegan.data.image_file import Fit, ImageRequirements
from fastcyclegan.data.loader import Loader, Log, Source
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import Images, find_images
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.engine import Engine, require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.ahead import Progress
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.training.resume import restore_state, resume
from fastcyclegan.training.run import Run, with_absolute_paths
from fastcyclegan.training.run_folder import DATASET, choose_folder, open_folder
from fastcyclegan.training.run_table import describe_run

Loaded = tuple[Images | None, Loader | TensorLoader, DataConfig]
"""The images (None if the caller provides tensors), their loader, and the settings for them."""


@dataclass(frozen=True)
class Overrides:
    """Objects that the caller provides in place of those that the configuration describes.

    These are initialised networks, loaders, and a state to resume from. If ``files`` is true, the run writes
    files to the folder that its configuration names; if it is false, it writes none.
    """

    nets: dict[str, nn.Module] | None = None
    loaders: tuple[Iterable[Any], Iterable[Any] | None] | None = None
    iterations_per_epoch: int | None = None
    state: dict[str, Any] | None = None
    files: bool = True


def start(
    config: TrainConfig,
    log: Log,
    progress: Callable[[int, int], None] | None = None,
    overrides: Overrides = Overrides(),
    compiling: Progress | None = None,
) -> Run:
    """Set up the run that ``config`` describes.

    Raises UserError for any problem that the user can fix, before anything is changed. ``progress`` is called
    with the number of files checked so far and their total number. ``compiling`` is called with the progress
    of compiling kernels before the first iteration.
    """
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    folder: Path | None = None
    if overrides.files:
        folder, config = choose_folder(config)
    # The folder is opened after everything that can fail, so that a run that cannot start neither creates nor
    # replaces a folder.
    choice: Choice | None = None
    problem = why_not_compiled(device) if config.run.compile else ""
    if overrides.loaders is None:
        choice = choose(config.data.loader, device, config.data.num_threads)
    check_cache(config.data.cache, device)
    torch.manual_seed(config.run.seed)
    _check_engine(config, device)
    engine = _make_engine(config, device, not problem, overrides, log, compiling)
    if choice is None:
        loaded = _load_tensors(config, folder, device, overrides)
    else:
        loaded = _load(config, folder, choice, device, log, progress)
    images, loader, data = loaded
    _log_deviations(config, data, loader.plan, problem, log)
    first = (config.optim.epoch_count - 1) * loader.plan.iterations_per_epoch
    run = Run(
        config=config,
        folder=folder,
        images=images,
        data=data,
        plan=loader.plan,
        loader=loader,
        choice=choice,
        engine=engine,
        first=first,
        iteration=first,
    )
    run.table = describe_run(run)
    _restore(run, overrides, log)
    if run.iteration < run.last and folder is not None:
        _write_config(folder, config)
    return run


def _restore(run: Run, overrides: Overrides, log: Log) -> None:
    """Restore the state of ``run`` if it resumes an earlier run."""
    if overrides.state is not None:
        restore_state(run, overrides.state, "the previous state", log)
    elif run.config.run.continue_train:
        resume(run, log)


def _make_engine(
    config: TrainConfig,
    device: torch.device,
    compiler_works: bool,
    overrides: Overrides,
    log: Log,
    compiling: Progress | None,
) -> Engine:
    compiled = config.run.compile and compiler_works
    recipe, nets = make_recipe(config), overrides.nets
    if nets is None:
        nets = networks_that_fit(config)
    return Engine(
        recipe,
        nets,
        config.optim,
        device,
        resolve_precision(config.run.precision, device, compiled),
        compiled,
        config.engine,
        log=log,
        fixed_sizes=overrides.loaders is None and config.data.preprocess in FIXED_SIZE,
        progress=compiling,
    )


def _log_deviations(config: TrainConfig, data: DataConfig, plan: Plan, problem: str, log: Log) -> None:
    """Log how the run deviates from the configuration, and that compiling will take long.

    ``problem`` is the reason why torch.compile cannot be used, or "".
    """
    if data.batch_size > len(plan):
        log(
            f"batch_size {data.batch_size} is more than the {len(plan)} available images, so every batch"
            f" contains {len(plan)} images"
        )
    if problem:
        log(f"--compile: {problem}; training continues uncompiled")
    elif config.run.compile:
        log(
            "--compile: the first iteration includes compilation, which takes minutes on a CPU; later runs"
            " use the cache"
        )


def _write_config(folder: Path, config: TrainConfig) -> None:
    try:
        run_files.write_config(folder, with_absolute_paths(config))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {system_reason(error)}") from None


def _load_tensors(
    config: TrainConfig, folder: Path | None, device: torch.device, overrides: Overrides
) -> Loaded:
    """Wrap the caller's loaders and open the run's folder.

    The returned settings describe the batches that the loaders yield.
    """
    assert overrides.loaders is not None
    required, seed = ImageRequirements.of(config.model), config.run.seed
    loader = TensorLoader(*overrides.loaders, required, device, seed, overrides.iterations_per_epoch)
    if folder is not None:
        open_folder(folder, config.run.overwrite)
    return None, loader, dataclasses.replace(config.data, batch_size=loader.batch_size, preprocess="crop")


def _load(
    config: TrainConfig,
    folder: Path | None,
    choice: Choice,
    device: torch.device,
    log: Log,
    progress: Callable[[int, int], None] | None,
) -> Loaded:
    """Find and check the images, create their loader and open the run's folder.

    If the run uses the built-in images, they are drawn into that folder.
    """
    data, model = config.data, config.model
    if data.is_builtin:
        assert folder is not None, "the built-in images are drawn into the run's folder"
        open_folder(folder, config.run.overwrite)
        builtin.write(folder / DATASET, config.run.seed)
        data, progress = dataclasses.replace(data, dataroot=folder / DATASET), None
    required = ImageRequirements.of(model)
    images = find_images(data, config.run.seed, log, progress, required)
    a = _source(data, model, images.train_A, model.input_nc, images)
    b = _source(data, model, images.train_B, model.output_nc, images)
    if folder is not None and config.run.overwrite and not config.data.is_builtin:
        _protect_images(folder, (*a.paths, *b.paths))
    loader = make_loader(choice, a, b, _plan(config, images), device, data, log)
    if folder is not None and not config.data.is_builtin:
        open_folder(folder, config.run.overwrite)
    return images, loader, data


def networks_that_fit(config: TrainConfig) -> dict[str, nn.Module]:
    """Create and initialise the networks. Raises UserError if they do not fit in memory."""
    try:
        return make_recipe(config).build_networks(config.model)
    except (RuntimeError, MemoryError) as error:
        model = config.model
        networks = f"{model.netG} with ngf {model.ngf} and {model.netD} with ndf {model.ndf}"
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise UserError(f"{networks} cannot be created: {reason}") from None


def _check_engine(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError if an option is requested that ``device`` or the networks do not support."""
    options = config.engine
    needs_gpu = {
        "--graph on": options.graph == "on",
        "--nvtx": options.nvtx,
        f"--overlap {options.overlap}": options.overlap in ("wgrad", "phases"),
    }
    for flag, requested in needs_gpu.items():
        if requested and device.type != "cuda":
            raise UserError(f"{flag} needs a CUDA GPU, but this run uses the device {device.type}")
    if options.micro_batch is not None and config.model.norm == "batch":
        raise UserError(
            "--micro_batch would change the result of batch norm, which needs all images of a batch together"
        )


def _plan(config: TrainConfig, images: Images) -> Plan:
    data = config.data
    return Plan(
        config.run.seed,
        len(images.train_A),
        len(images.train_B),
        data.batch_size,
        data.serial_batches,
        not data.no_flip,
    )


def _source(
    data: DataConfig, model: ModelConfig, paths: Sequence[Path], channels: int, images: Images
) -> Source:
    return Source(paths, Fit.of(data, channels, model.size_multiple), images.checked)


def _protect_images(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UserError if --overwrite would delete training images."""
    for path in paths:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete the training images: {path} is in {folder}")
