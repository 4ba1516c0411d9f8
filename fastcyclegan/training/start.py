"""How a run begins: its folder, its images, its engine, and, when it is resumed, the place where it
stopped."""

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
from fastcyclegan.training.resume import resume, take_up
from fastcyclegan.training.run import Run, with_absolute_paths
from fastcyclegan.training.run_folder import DATASET, choose_folder, open_folder
from fastcyclegan.training.run_table import describe_run

Loaded = tuple[Images | None, Loader | TensorLoader, DataConfig]
"""The images, None where the caller gives tensors, what loads them, and what was asked of them."""


@dataclass(frozen=True)
class Overrides:
    """What a caller has in place of what the configuration would make: networks that are initialised, loaders
    of its own, a state to resume from.

    ``files``: whether the run keeps files, in the folder that its configuration names.
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
    """Set up the run that ``config`` describes. Raises UserError for whatever the user can put right, before
    anything is changed.

    ``progress`` hears of files that are checked, ``compiling`` of kernels that the first iteration has
    compiled beforehand.
    """
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    folder: Path | None = None
    if overrides.files:
        folder, config = choose_folder(config)
    # All that can fail comes before the folder: a run that cannot start leaves none, and replaces none.
    choice: Choice | None = None
    problem = why_not_compiled(device) if config.run.compile else ""
    if overrides.loaders is None:
        choice = choose(config.data.loader, device, config.data.num_threads)
    check_cache(config.data.cache, device)
    torch.manual_seed(config.run.seed)
    _check_engine(config, device)
    engine = _make_engine(config, device, not problem, overrides, log, compiling)
    if choice is None:
        found = _load_tensors(config, folder, device, overrides)
    else:
        found = _load(config, folder, choice, device, log, progress)
    images, loader, data = found
    _log_what_differs(config, data, loader.plan, problem, log)
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
    _bring_up(run, overrides, log)
    if run.iteration < run.last and folder is not None:
        _write_config(folder, config)
    return run


def _bring_up(run: Run, overrides: Overrides, log: Log) -> None:
    """Put ``run`` where it stopped, if it did."""
    if overrides.state is not None:
        take_up(run, overrides.state, "the state before", log)
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


def _log_what_differs(config: TrainConfig, data: DataConfig, plan: Plan, problem: str, log: Log) -> None:
    """Say what is otherwise than asked for, and what will take long. ``problem``: why nothing is compiled."""
    if data.batch_size > len(plan):
        log(
            f"batch_size {data.batch_size} is more than the {len(plan)} images there are, so every batch"
            f" holds {len(plan)}"
        )
    if problem:
        log(f"--compile: {problem}; training goes on uncompiled")
    elif config.run.compile:
        log(
            "--compile: the first iteration compiles, which takes minutes on a processor; later starts take"
            " it from the cache"
        )


def _write_config(folder: Path, config: TrainConfig) -> None:
    try:
        run_files.write_config(folder, with_absolute_paths(config))
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {system_reason(error)}") from None


def _load_tensors(
    config: TrainConfig, folder: Path | None, device: torch.device, overrides: Overrides
) -> Loaded:
    """Make the loader of the caller's loaders, say in the configuration what they hold, and open the run's
    folder.
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
    """Find and check the images, make their loader, and open the run's folder, where the built-in ones are
    drawn.
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
        _refuse_own_images(folder, (*a.paths, *b.paths))
    loader = make_loader(choice, a, b, _plan(config, images), device, data, log)
    if folder is not None and not config.data.is_builtin:
        open_folder(folder, config.run.overwrite)
    return images, loader, data


def networks_that_fit(config: TrainConfig) -> dict[str, nn.Module]:
    """Return the networks, initialised. Raises UserError where they are larger than the memory."""
    try:
        return make_recipe(config).build_networks(config.model)
    except (RuntimeError, MemoryError) as error:
        model = config.model
        networks = f"{model.netG} with ngf {model.ngf} and {model.netD} with ndf {model.ndf}"
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise UserError(f"{networks} cannot be made: {reason}") from None


def _check_engine(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError for what ``device`` or the networks cannot do, and is asked for by name."""
    options = config.engine
    needs_gpu = {
        "--graph on": options.graph == "on",
        "--nvtx": options.nvtx,
        f"--overlap {options.overlap}": options.overlap in ("wgrad", "phases"),
    }
    for flag, asked_for in needs_gpu.items():
        if asked_for and device.type != "cuda":
            raise UserError(f"{flag} needs a CUDA GPU, got --device {device.type}")
    if options.micro_batch is not None and config.model.norm == "batch":
        raise UserError(
            "--micro_batch would change what batch norm computes: it looks at all images of a batch"
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


def _refuse_own_images(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UserError where --overwrite would delete the images that are to be trained on."""
    for path in paths:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete its own images: {path} lies in {folder}")
