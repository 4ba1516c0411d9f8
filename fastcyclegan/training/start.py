"""How a run begins: its folder, its images, its engine, and, when it is resumed, the place where it
stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.checkpoints import run_files
from fastcyclegan.config import FIXED_SIZE, DataConfig, TrainConfig
from fastcyclegan.data import builtin
from fastcyclegan.data.choose_loader import Choice, check_cache, choose, make_loader
from fastcyclegan.data.image_file import Fit, ImageRequirements
from fastcyclegan.data.loader import Loader, Say, Source
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import Pictures, find_pictures
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.engine import Engine, require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.ahead import Progress
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import CycleGAN, build_networks
from fastcyclegan.training.resume import resume, take_up
from fastcyclegan.training.run import Run, with_absolute_paths
from fastcyclegan.training.run_folder import DATASET, choose_folder, open_folder


@dataclass(frozen=True)
class Given:
    """What the caller of ``start`` has already: networks that are initialised, loaders of its own, a state to
    go on from.

    ``files``: whether the run keeps files, in the folder that its configuration names.
    """

    nets: dict[str, nn.Module] | None = None
    loaders: tuple[Iterable[Any], Iterable[Any] | None] | None = None
    iterations_per_epoch: int | None = None
    state: dict[str, Any] | None = None
    files: bool = True


def start(
    config: TrainConfig,
    say: Say,
    progress: Callable[[int, int], None] | None = None,
    given: Given = Given(),
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
    if given.files:
        folder, config = choose_folder(config)
    reason = why_not_compiled(device) if config.run.compile else ""
    compiled = config.run.compile and not reason
    precision = resolve_precision(config.run.precision, device, compiled)
    # All that can fail comes before the folder: a run that cannot start leaves none, and replaces none.
    choice = None if given.loaders else choose(config.data.loader, device, config.data.num_threads)
    check_cache(config.data.cache, device)
    torch.manual_seed(config.run.seed)
    _check_engine(config, device)
    nets = given.nets or networks_that_fit(config)
    fixed = given.loaders is None and config.data.preprocess in FIXED_SIZE
    recipe = CycleGAN.from_config(config)
    engine = Engine(
        recipe,
        nets,
        config.optim,
        device,
        precision,
        compiled,
        config.engine,
        say=say,
        fixed_sizes=fixed,
        progress=compiling,
    )
    pictures: Pictures | None = None
    loader: Loader | TensorLoader
    if choice is None:
        loader, data = _load_tensors(config, device, given)
        if folder is not None:
            open_folder(folder, config.run.overwrite)
    else:
        pictures, loader, data = _load(config, folder, choice, device, say, progress)
    _say_what_differs(config, data, loader.plan, reason, compiled, say)
    plan = loader.plan
    first = (config.optim.epoch_count - 1) * plan.iterations_per_epoch
    run = Run(config, folder, pictures, data, plan, loader, choice, engine, first, first, {}, {})
    run.table = _table(run)
    if given.state is not None:
        take_up(run, given.state, "the state before", say)
    elif config.run.continue_train:
        resume(run, say)
    if run.iteration < run.last and folder is not None:
        _write_config(folder, config)
    return run


def _say_what_differs(
    config: TrainConfig, data: DataConfig, plan: Plan, reason: str, compiled: bool, say: Say
) -> None:
    """Say what is otherwise than asked for, and what will take long."""
    if data.batch_size > len(plan):
        say(
            f"batch_size {data.batch_size} is more than the {len(plan)} pictures there are, so every batch"
            f" holds {len(plan)}"
        )
    if reason:
        say(f"--compile: {reason}; training goes on uncompiled")
    if compiled:
        say(
            "--compile: the first iteration compiles, which takes minutes on a processor; later starts take"
            " it from the cache"
        )


def _table(run: Run) -> dict[str, str]:
    config, data, pictures = run.config, run.data, run.pictures
    if pictures is None:
        counts = f"batches of {run.plan.batch_size}, {run.plan.iterations_per_epoch} iterations an epoch"
        samples = {"samples": f"from the caller's loaders, {counts}"}
    else:
        held_out = f"{len(pictures.test_A)} and {len(pictures.test_B)} held out"
        samples = {
            "pictures": (
                f"{len(pictures.train_A)} of A and {len(pictures.train_B)} of B to train with, {held_out}"
            ),
            "samples": (
                f"{data.preprocess}, {_size(data)}, batch {data.batch_size}, {run.plan.iterations_per_epoch}"
                " iterations an epoch"
            ),
            "loader": str(run.choice),
        }
    return {
        **samples,
        "networks": _networks(config, run.engine),
        "learning rate": _learning_rate(config, min(data.batch_size, len(run.plan))),
        **run.engine.describe(),
    }


def _write_config(folder: Path, config: TrainConfig) -> None:
    try:
        run_files.write_config(folder, with_absolute_paths(config))
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror or error}") from None


def _load_tensors(config: TrainConfig, device: torch.device, given: Given) -> tuple[TensorLoader, DataConfig]:
    """Make the loader of the caller's loaders, and say in the configuration what they hold."""
    assert given.loaders is not None
    required = ImageRequirements.of(config.model)
    loader = TensorLoader(*given.loaders, required, device, config.run.seed, given.iterations_per_epoch)
    return loader, dataclasses.replace(config.data, batch_size=loader.batch_size, preprocess="crop")


def _load(
    config: TrainConfig,
    folder: Path | None,
    choice: Choice,
    device: torch.device,
    say: Say,
    progress: Callable[[int, int], None] | None,
) -> tuple[Pictures, Loader, DataConfig]:
    """Find and check the pictures, make their loader, and open the run's folder, where the built-in ones are
    drawn.
    """
    data = config.data
    if data.is_builtin:
        assert folder is not None, "the built-in pictures are drawn into the run's folder"
        open_folder(folder, config.run.overwrite)
        builtin.write(folder / DATASET, config.run.seed)
        data, progress = dataclasses.replace(data, dataroot=folder / DATASET), None
    required = ImageRequirements.of(config.model)
    pictures = find_pictures(data, config.run.seed, say, progress, required)
    a, b = _sources(data, config, pictures)
    if folder is not None:
        inside = [path for path in (*a.paths, *b.paths) if path.resolve().is_relative_to(folder.resolve())]
        if inside and config.run.overwrite and not config.data.is_builtin:
            raise UserError(f"--overwrite would delete its own pictures: {inside[0]} lies in {folder}")
    loader = make_loader(choice, a, b, _plan(config, pictures), device, data, say)
    if folder is not None and not config.data.is_builtin:
        open_folder(folder, config.run.overwrite)
    return pictures, loader, data


def networks_that_fit(config: TrainConfig) -> dict[str, nn.Module]:
    """Return the networks, initialised. Raises UserError where they are larger than the memory."""
    try:
        return build_networks(config.model)
    except (RuntimeError, MemoryError) as error:
        model = config.model
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise UserError(
            f"{model.netG} with ngf {model.ngf} and {model.netD} with ndf {model.ndf} cannot be made:"
            f" {reason}"
        ) from None


def _size(data: DataConfig) -> str:
    sizes = {
        "resize_and_crop": f"{data.load_size} to {data.crop_size} pixels",
        "crop": f"{data.crop_size} pixels",
    }
    return sizes.get(data.preprocess, f"width {data.load_size}" if "width" in data.preprocess else "own size")


def _check_engine(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError for what ``device`` or the networks cannot do, and is asked for by name."""
    options = config.engine
    for flag, value in (
        ("graph", options.graph == "on"),
        ("nvtx", options.nvtx),
        ("overlap", options.overlap in ("wgrad", "phases")),
    ):
        if value and device.type != "cuda":
            given = "" if flag == "nvtx" else f" {getattr(options, flag)}"
            raise UserError(f"--{flag}{given} needs a CUDA GPU, got --device {device.type}")
    if options.micro_batch is not None and config.model.norm == "batch":
        raise UserError(
            "--micro_batch would change what batch norm computes: it looks at all pictures of a batch"
        )


def _learning_rate(config: TrainConfig, batch: int) -> str:
    optim = config.optim
    scaled = f" = {optim.lr:g} x sqrt({batch}) (--lr_scaling sqrt)" if optim.lr_scaling == "sqrt" else ""
    return f"{config.scaled_lr(batch):g}{scaled}, {optim.lr_policy}"


def _networks(config: TrainConfig, engine: Engine) -> str:
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in engine.nets.items()}
    model = config.model
    return (
        f"{model.netG} ngf {model.ngf} ({count['G_AB']:,} weights each), {model.netD} ndf {model.ndf}"
        f" ({count['D_A']:,} each)"
    )


def _plan(config: TrainConfig, pictures: Pictures) -> Plan:
    data = config.data
    return Plan(
        config.run.seed,
        len(pictures.train_A),
        len(pictures.train_B),
        data.batch_size,
        data.serial_batches,
        not data.no_flip,
    )


def _sources(data: DataConfig, config: TrainConfig, pictures: Pictures) -> tuple[Source, Source]:
    model = config.model
    fit_A, fit_B = (
        Fit.of(data, channels, model.size_multiple) for channels in (model.input_nc, model.output_nc)
    )
    return Source(pictures.train_A, fit_A, pictures.checked), Source(
        pictures.train_B, fit_B, pictures.checked
    )
