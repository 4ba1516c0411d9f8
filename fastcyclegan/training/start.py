"""Start a run: its folder, its images, its engine and, if it is resumed, its training state."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.run_files import DATASET
from fastcyclegan.config import DataConfig, TrainConfig, to_dict
from fastcyclegan.data import builtin
from fastcyclegan.data.background import Stopping, never
from fastcyclegan.data.choose_loader import Choice, check_cache, choose, make_loader
from fastcyclegan.data.fit import require_file_channels
from fastcyclegan.data.loader import Loader, Log, sources_of
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import Images, find_images
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.engine import (
    Engine,
    replaces_compiler,
    require_impl,
    resolve_device,
    resolve_precision,
    why_not_compiled,
)
from fastcyclegan.engine.ahead import Progress
from fastcyclegan.engine.batching import first_reason, why_not_batched
from fastcyclegan.errors import StoppedError, UserError, cannot_write
from fastcyclegan.nn.finite import not_finite_in
from fastcyclegan.nn.networks import is_ours
from fastcyclegan.recipes.recipe import LAYOUTS, Recipe, naming_recipe
from fastcyclegan.training.frozen import require_possible_freeze, require_possible_warmup
from fastcyclegan.training.given_networks import require_trainable
from fastcyclegan.training.initial_weights import sources, start_from_files
from fastcyclegan.training.resume import has_weights, require_builtin_images, restore_state, resume
from fastcyclegan.training.run import Run, with_absolute_paths
from fastcyclegan.training.run_evaluation import RunEvaluation
from fastcyclegan.training.run_folder import RunFolder
from fastcyclegan.training.run_table import describe_run
from fastcyclegan.training.tracker import Tracker, Trackers
from fastcyclegan.training.wandb_tracker import WandbTracker, import_wandb

Loaded = tuple[Images | None, Loader | TensorLoader, DataConfig]
"""The images (None if the caller provides tensors), their loader, and the settings for them."""


@dataclass(frozen=True)
class Overrides:
    """Objects that the caller provides in place of those that the configuration describes.

    These are initialised networks, the ``origins`` of their weights, loaders, a state to resume from,
    trackers, and the state of torch's generator after the networks were initialised, from which dropout goes
    on as if they had been initialised here. If ``files`` is true, the run writes files to the folder that its
    configuration names; if it is false, it writes none.
    """

    nets: dict[str, nn.Module] | None = None
    loaders: tuple[Iterable[Any], Iterable[Any] | None] | None = None
    iterations_per_epoch: int | None = None
    state: dict[str, Any] | None = None
    files: bool = True
    origins: Mapping[str, str] = field(default_factory=dict)
    trackers: Sequence[Tracker] = ()
    random_state: Tensor | None = None


def start(
    config: TrainConfig,
    log: Log,
    progress: Callable[[int, int], None] | None = None,
    overrides: Overrides = Overrides(),
    compiling: Progress | None = None,
    stopping: Stopping = never,
) -> Run:
    """Set up the run that ``config`` describes.

    Raises UserError for any problem that the user can fix, and StoppedError soon after ``stopping`` returns
    True. In both cases nothing has changed. ``progress`` is called with the number of files checked so far
    and their total number. ``compiling`` is called with the progress of compiling kernels before the first
    iteration. The run holds the lock of its folder: release it at the end.
    """
    _require_single_process()
    require_possible_freeze(config)
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    if config.run.use_wandb:
        import_wandb()
    if overrides.loaders is None:
        require_file_channels(config.make_recipe().file_channels)
    folder: RunFolder | None = None
    if overrides.files:
        folder = RunFolder(config, log)
    try:
        return _start(config, folder, device, _Reporter(log, progress, compiling, stopping), overrides)
    except BaseException:
        if folder is not None:
            folder.discard()
        raise


def launched_processes() -> int:
    """Return how many processes torchrun or a similar launcher started for this run; 1 without a launcher."""
    count = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and count.isdecimal():
        return int(count)
    return 1


def _require_single_process() -> None:
    count = launched_processes()
    if count > 1:
        raise UserError(
            f"a run uses one process and one GPU, but a launcher such as torchrun started {count} processes:"
            " start it with python instead"
        )


@dataclass(frozen=True)
class _Reporter:
    """What a start reports its progress to, and how it learns that it should stop."""

    log: Log
    progress: Callable[[int, int], None] | None
    compiling: Progress | None
    stopping: Stopping

    def check(self) -> None:
        """Raise StoppedError if the start should stop."""
        if self.stopping():
            raise StoppedError

    def checked_files(self, checked: int, total: int) -> None:
        """Report how many of the files were checked. Raises StoppedError if the start should stop."""
        self.check()
        if self.progress is not None:
            self.progress(checked, total)


def _start(
    config: TrainConfig,
    folder: RunFolder | None,
    device: torch.device,
    reporter: _Reporter,
    overrides: Overrides,
) -> Run:
    # The folder is opened after everything that can fail, so that a run that cannot start neither creates nor
    # replaces a folder.
    choice: Choice | None = None
    problem = why_not_compiled(device) if _compiles(config, device) else ""
    if overrides.loaders is None:
        choice = choose(config.data.loader, device, config.data.num_threads)
    check_cache(config.data.cache, device)
    reporter.check()
    evaluation = _evaluation(config, device, overrides, reporter)
    torch.manual_seed(config.run.seed)
    _check_engine(config, device)
    nets, origins = _initial_networks(config, folder, overrides)
    engine = _make_engine(config, nets, device, not problem, overrides.loaders is None, reporter)
    reporter.check()
    if choice is None:
        loaded = _load_tensors(config, folder, device, overrides)
    else:
        loaded = _load(config, folder, choice, device, reporter, evaluation)
    if folder is not None:
        config = folder.named(config)
    run = _new_run(config, folder, loaded, choice, engine)
    run.origins, run.trackers, run.evaluation = origins, Trackers(overrides.trackers), evaluation
    _log_deviations(config, run.data, run.plan, device, problem, reporter.log)
    run.table = _table(run)
    reporter.check()
    _restore(run, overrides, reporter.log)
    require_possible_warmup(config, run.last - run.first)
    _require_finite(run, overrides, run.engine.state_dict())
    reporter.check()
    _open_records(run, reporter.log)
    return run


def _evaluation(
    config: TrainConfig, device: torch.device, overrides: Overrides, reporter: _Reporter
) -> RunEvaluation | None:
    """Return what evaluates the run, with the networks of its metrics, if it is to be evaluated."""
    if not config.evaluation.asks:
        return None
    if overrides.loaders is not None:
        raise UserError(
            "--eval_every and --eval_metric need images in files; with loaders, call the model's evaluate in"
            " a callback"
        )
    return RunEvaluation(config, device, reporter.log)


def _new_run(
    config: TrainConfig,
    folder: RunFolder | None,
    loaded: Loaded,
    choice: Choice | None,
    engine: Engine,
) -> Run:
    """Return the run at its beginning."""
    images, loader, data = loaded
    first = (config.optim.epoch_count - 1) * loader.plan.iterations_per_epoch
    run = Run(
        config=config,
        folder=None if folder is None else folder.path,
        lock=None if folder is None else folder.lock,
        images=images,
        data=data,
        plan=loader.plan,
        loader=loader,
        choice=choice,
        engine=engine,
        first=first,
        iteration=first,
    )
    run.require_carried()
    return run


def _table(run: Run) -> dict[str, str]:
    """Return the table of ``run``, as its first iteration will be. Afterwards, nothing is frozen any more."""
    run.freeze()
    try:
        return describe_run(run)
    finally:
        run.unfreeze()


def _open_records(run: Run, log: Log) -> None:
    """Begin the run of wandb, if any, and write the configuration, unless nothing is left to train."""
    if run.iteration >= run.last:
        return
    if run.config.run.use_wandb:
        saved = to_dict(with_absolute_paths(run.config))
        run.trackers.append(WandbTracker(run.config.run, saved, run.folder, log))
    try:
        if run.folder is not None:
            _write_config(run.folder, run.config)
    except UserError:
        run.trackers.close()
        raise


def _restore(run: Run, overrides: Overrides, log: Log) -> None:
    """Restore the state of ``run`` if it resumes an earlier run."""
    if overrides.state is not None:
        _require_finite(run, overrides, overrides.state)
        restore_state(run, overrides.state, "the previous state", log)
    elif run.config.run.continue_train:
        resume(run, log)


def _require_finite(run: Run, overrides: Overrides, state: Mapping[str, Any]) -> None:
    """Raise UserError if a weight, a running average or a value of Adam in ``state`` is not finite."""
    found = not_finite_in({name: state[name] for name in ("nets", "ema", "optimizers") if name in state})
    if found is None:
        return
    if overrides.nets is not None:
        title = run.engine.recipe.title
        raise UserError(
            f"the model in memory cannot be trained: {found}; load a saved one with {title}.load, or create"
            f" a new {title}"
        )
    if not run.config.run.continue_train:
        raise UserError(f"the initial weights cannot be trained: {found}; use a smaller --init_gain")
    raise UserError(f"{run.folder}: {found}, so the run cannot be resumed from there; use another --epoch")


def _initial_networks(
    config: TrainConfig, folder: RunFolder | None, overrides: Overrides
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the networks, and where their weights come from, which is {} unless some are those of a file."""
    if overrides.nets is not None:
        require_trainable(overrides.nets)
        if overrides.random_state is not None:
            torch.set_rng_state(overrides.random_state)
        return overrides.nets, {} if overrides.state is not None else dict(overrides.origins)
    nets = networks_that_fit(config)
    if folder is not None and config.run.continue_train and has_weights(folder.path, config.run.epoch):
        return nets, {}  # they get their weights from there
    origins = start_from_files(config, nets)
    if folder is not None and config.run.overwrite:
        _protect(folder.path, sources(config), "the weights to start from")
    return nets, origins


def _make_engine(
    config: TrainConfig,
    nets: dict[str, nn.Module],
    device: torch.device,
    compiler_works: bool,
    from_files: bool,
    reporter: _Reporter,
) -> Engine:
    """Create the engine. ``from_files`` is false if the images come from a caller's loaders."""
    if config.engine.micro_batch is not None:
        reason = first_reason(why_not_batched(name, net) for name, net in nets.items())
        if reason:
            raise UserError(f"--micro_batch would change the result: {reason}")
    recipe = config.make_recipe()
    with naming_recipe(recipe):
        return Engine(
            recipe,
            nets,
            config.optim,
            device,
            resolve_precision(config.run.precision, device, config.run.compile and compiler_works),
            _compiles(config, device) and compiler_works,
            config.engine,
            log=reporter.log,
            fixed_sizes=from_files and config.data.has_one_size,
            progress=reporter.compiling,
        )


def _compiles(config: TrainConfig, device: torch.device) -> bool:
    """Return whether torch.compile was requested, and the C++ kernels are not used in its place."""
    if not config.run.compile or not replaces_compiler(config.model.impl, device):
        return config.run.compile
    with torch.device("meta"):  # the kernels only compute the official networks
        nets = config.make_recipe().build_networks()
    return not any(is_ours(net) for net in nets.values())


def _log_deviations(
    config: TrainConfig, data: DataConfig, plan: Plan, device: torch.device, problem: str, log: Log
) -> None:
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
    elif _compiles(config, device):
        log(
            "--compile: the first iteration includes compilation, which takes minutes on a CPU; later runs"
            " use the cache"
        )
    elif config.run.compile:
        log(
            "--compile: nothing is compiled, because the C++ kernels are faster on a CPU"
            " (--impl reference compiles PyTorch's operators)"
        )


def _write_config(folder: Path, config: TrainConfig) -> None:
    try:
        run_files.write_config(folder, with_absolute_paths(config))
    except OSError as error:
        raise cannot_write(folder / run_files.CONFIG, error) from None


def _load_tensors(
    config: TrainConfig, folder: RunFolder | None, device: torch.device, overrides: Overrides
) -> Loaded:
    """Wrap the caller's loaders and open the run's folder.

    The returned settings describe the batches that the loaders yield.
    """
    assert overrides.loaders is not None
    recipe, seed = config.make_recipe(), config.run.seed
    loader = TensorLoader(
        *overrides.loaders,
        recipe.requirements,
        device,
        seed,
        overrides.iterations_per_epoch,
        numbers=recipe.numbers_per_sample,
        same_size=recipe.needs_equal_sizes,
        sides=config.data.sides,
        paired=config.data.dataset_mode == "aligned",
    )
    _require_long_enough(config, loader.plan)
    if folder is not None:
        folder.open()
    return None, loader, dataclasses.replace(config.data, batch_size=loader.batch_size, preprocess="crop")


def _load(
    config: TrainConfig,
    folder: RunFolder | None,
    choice: Choice,
    device: torch.device,
    reporter: _Reporter,
    evaluation: RunEvaluation | None,
) -> Loaded:
    """Find and check the images, create their loader and open the run's folder.

    If the run uses the built-in images, they are drawn into that folder.
    """
    data, recipe = config.data, config.make_recipe()
    progress: Callable[[int, int], None] = reporter.checked_files
    if data.is_builtin:
        _require_builtin(recipe, data)
        assert folder is not None, "the built-in images are drawn into the run's folder"
        if config.run.continue_train:
            require_builtin_images(folder.path)
        count = builtin.COUNTS["train"]
        if data.max_dataset_size is not None:
            count = min(count, data.max_dataset_size)
        _require_long_enough(config, _plan(config, recipe, count, count))
        if evaluation is not None:
            evaluation.require_builtin()
        folder.open()
        _draw_builtin_images(folder.path / DATASET, config, reporter)
        data = dataclasses.replace(data, dataroot=folder.path / DATASET)
        progress = dataclasses.replace(reporter, progress=None).checked_files
    required = recipe.requirements
    images = find_images(data, config.run.seed, reporter.log, progress, required, recipe.layouts)
    sources = sources_of(images, data, required)
    if folder is not None and config.run.overwrite and not config.data.is_builtin:
        paths = [path for source in sources.values() for path in source.paths]
        _protect(folder.path, paths, "the training images")
    plan = _plan(config, recipe, len(images.train_A), len(images.train_B))
    _require_long_enough(config, plan)
    if evaluation is not None:
        evaluation.use(images, data, required)
    loader = make_loader(choice, sources, plan, device, data, reporter.log, stopping=reporter.stopping)
    if folder is not None and not config.data.is_builtin:
        folder.open()
    return images, loader, data


def _require_builtin(recipe: Recipe, data: DataConfig) -> None:
    """Raise UserError if ``recipe`` cannot train on the built-in dataset, which has two domains in colour."""
    if recipe.builtin is None or data.dataset_mode == "single":
        raise UserError(
            f"no images given: {recipe.title} needs images in the layout {data.dataset_mode}"
            f" ({LAYOUTS[data.dataset_mode]})"
        )
    if recipe.requirements.channels != (3, 3):
        found = ", ".join(f"{name} {count}" for name, count in recipe.file_channels.items())
        raise UserError(f"no images given, and the built-in ones are in colour, got {found}")


def _draw_builtin_images(root: Path, config: TrainConfig, reporter: _Reporter) -> None:
    paired = config.data.dataset_mode == "aligned"
    try:
        builtin.write(root, config.run.seed, reporter.check, paired=paired)
    except OSError as error:
        file = root if error.filename is None else Path(error.filename)
        raise cannot_write(file, error) from None


def networks_that_fit(config: TrainConfig) -> dict[str, nn.Module]:
    """Create and initialise the networks. Raises UserError if they do not fit in memory."""
    try:
        recipe = config.make_recipe()
        nets = recipe.build_networks()
        recipe.require_networks(nets)
        recipe.mark_generators(nets)
        return nets
    except (RuntimeError, MemoryError) as error:
        networks = config.make_recipe().architecture
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


def _require_long_enough(config: TrainConfig, plan: Plan) -> None:
    """Raise UserError if a new run, with the samples of ``plan``, is shorter than its warm-up."""
    if config.run.continue_train:  # its first epoch is in its state
        return
    epochs = config.optim.last_epoch - config.optim.epoch_count + 1
    require_possible_warmup(config, epochs * plan.iterations_per_epoch)


def _plan(config: TrainConfig, recipe: Recipe, count_A: int, count_B: int) -> Plan:
    """Return the samples of a run with these numbers of training images."""
    data = config.data
    is_paired = data.dataset_mode != "unaligned"
    return Plan(
        config.run.seed,
        count_A,
        count_A if is_paired else count_B,
        data.batch_size,
        data.serial_batches,
        not data.no_flip,
        numbers=recipe.numbers_per_sample,
        paired=is_paired,
    )


def _protect(folder: Path, paths: Iterable[Path], what: str) -> None:
    """Raise UserError if --overwrite would delete any of ``paths``."""
    for path in paths:
        if path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--overwrite would delete {what}: {path} is in {folder}")
