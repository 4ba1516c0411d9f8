"""How a run begins: its folder, its pictures, its engine, and, when it is continued, the place where it stopped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan import checkpoint, loading
from fastcyclegan.checkpoint import CONFIG
from fastcyclegan.config import FIXED_SIZE, DataConfig, TrainConfig, to_dict
from fastcyclegan.data import toy
from fastcyclegan.data.loaders import Choice, check_cache, choose, make_loader
from fastcyclegan.data.picture import Fit
from fastcyclegan.data.plan import Plan
from fastcyclegan.data.scan import Needs, Pictures, find_pictures, fingerprint
from fastcyclegan.data.source import Loader, Say, Source
from fastcyclegan.engine import Engine, require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import GENERATORS, CycleGAN, build_networks
from fastcyclegan.report import CURVES, PAGE, STATS
from fastcyclegan.tensor_files import load_tensors

DATASET = "dataset"
STATE_VERSION = 1

# Settings that a state was made with and cannot be continued without: they fix the samples, their order and the pools.
FIXED = (
    *(("data", name) for name in ("direction", "batch_size", "serial_batches")),
    ("loss", "pool_size"),
    ("run", "seed"),
)


def _default_name(config: TrainConfig) -> str:
    """Return the dataset's name and the first number that is free."""
    data = config.data
    if data.is_builtin:
        stem = "shapes"
    elif data.dataroot is not None:
        stem = data.dataroot.resolve().name
    else:
        stem = "2".join(folder.resolve().name for folder in (data.data_A, data.data_B) if folder is not None)
    folder = config.run.checkpoints_dir
    taken = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    number = 1
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).exists() or (folder / checkpoint.STATE).exists() or bool(checkpoint.saved_epochs(folder))


def _remove_run(folder: Path) -> None:
    """Delete what a run leaves in its folder, and nothing else that may lie there."""
    for name in (CONFIG, checkpoint.STATE, STATS, PAGE, CURVES):
        (folder / name).unlink(missing_ok=True)
    for file in folder.glob("*_net_*.pth"):
        file.unlink()
    for name in ("samples", "tensorboard", DATASET):
        shutil.rmtree(folder / name, ignore_errors=True)


def choose_folder(config: TrainConfig) -> tuple[Path, TrainConfig]:
    """Return the run's folder and ``config`` with its name; changes nothing. Raises UserError for a name that is taken or missing."""
    run = config.run
    if run.continue_train and run.name is None:
        runs = [path.name for path in sorted(run.checkpoints_dir.glob("*")) if _is_run(path)]
        raise UserError(f"--continue_train needs --name; runs in {run.checkpoints_dir}: {', '.join(runs) or 'none'}")
    name = run.name or _default_name(config)
    folder = run.checkpoints_dir / name
    if run.continue_train and not (folder.is_dir() and _is_run(folder)):
        raise UserError(f"{folder}: no run to continue (neither {checkpoint.STATE} nor *_net_*.pth)")
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link to nothing; use another --name")
    if folder.exists() and not run.continue_train and (not folder.is_dir() or any(folder.iterdir())):
        if not run.overwrite:
            raise UserError(f"{folder} exists: use --continue_train, --overwrite or another --name")
        if not folder.is_dir() or not _is_run(folder):
            raise UserError(f"{folder} is not a run's folder, so --overwrite leaves it alone; use another --name")
    return folder, dataclasses.replace(config, run=dataclasses.replace(run, name=name))


def open_folder(folder: Path, overwrite: bool) -> None:
    """Make the run's folder, or with ``overwrite`` empty it of its old run. Raises UserError where it cannot be written."""
    try:
        if overwrite and folder.exists():
            _remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_partials(folder)
        probe = folder / ".writable.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror or error}") from None


@dataclass
class Run:
    """Everything that the training loop works with."""

    config: TrainConfig
    folder: Path
    pictures: Pictures
    data: DataConfig
    plan: Plan
    loader: Loader
    choice: Choice
    engine: Engine
    first: int
    """Iteration (from 0, counted from epoch 1) at which the run was first started: epoch_count decides it."""
    iteration: int
    """Iterations done, counted from epoch 1."""
    extra: dict[str, Any]
    """What the loop itself saved in the state; {} at a first start."""
    table: dict[str, str]

    @property
    def batch(self) -> int:
        """Samples in a whole batch: fewer than asked for where there are fewer pictures."""
        return min(self.plan.batch_size, len(self.plan))

    @property
    def last(self) -> int:
        """Iteration after which training is complete."""
        stop = self.config.optim.last_epoch * self.plan.iterations_per_epoch
        limit = self.config.optim.max_iters
        return stop if limit is None else min(stop, self.first + limit)

    def state(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of everything that the next iteration depends on."""
        pictures = self.pictures
        place = {
            "version": STATE_VERSION,
            "iteration": self.iteration,
            "first": self.first,
            "pictures": [fingerprint(pictures.train_A), fingerprint(pictures.train_B)],
            "loader": self.choice.kind,
            "config": to_dict(_with_absolute_paths(self.config)),
        }
        return {**place, "extra": extra, **checkpoint.to_cpu(self.engine.state_dict())}


def start(config: TrainConfig, say: Say, progress: Callable[[int, int], None] | None = None) -> Run:
    """Set up the run that ``config`` describes. Raises UserError for whatever the user can put right, before anything is changed."""
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    folder, config = choose_folder(config)
    reason = why_not_compiled(device) if config.run.compile else ""
    compiled = config.run.compile and not reason
    precision = resolve_precision(config.run.precision, device, compiled)
    # All that can fail comes before the folder: a run that cannot start leaves none, and replaces none.
    choice = choose(config.data.loader, device, config.data.num_threads)
    check_cache(config.data.cache, device)
    torch.manual_seed(config.run.seed)
    options, fixed = config.engine, config.data.preprocess in FIXED_SIZE
    _check_engine(config, device)
    nets = _networks_that_fit(config)
    engine = Engine(CycleGAN.from_config(config), nets, config.optim, device, precision, compiled, options, say=say, fixed_sizes=fixed)
    pictures, loader, data = _load(config, folder, choice, device, say, progress)
    largest = max(len(pictures.train_A), len(pictures.train_B))
    if data.batch_size > largest:
        say(f"batch_size {data.batch_size} is more than the {largest} pictures there are, so every batch holds {largest}")
    if reason:
        say(f"--compile: {reason}; training goes on uncompiled")
    if compiled:
        say("--compile: the first iteration compiles, which takes minutes on a processor; later starts take it from the cache")
    plan = loader.plan
    first = (config.optim.epoch_count - 1) * plan.iterations_per_epoch
    table = {
        "pictures": f"{len(pictures.train_A)} of A and {len(pictures.train_B)} of B to train with, "
        f"{len(pictures.test_A)} and {len(pictures.test_B)} held out",
        "samples": f"{data.preprocess}, {_size(data)}, batch {data.batch_size}, {plan.iterations_per_epoch} iterations an epoch",
        "loader": str(choice),
        "networks": _networks(config, engine),
        "learning rate": _learning_rate(config, min(data.batch_size, largest)),
        **engine.describe(),
    }
    run = Run(config, folder, pictures, data, plan, loader, choice, engine, first, first, {}, table)
    if config.run.continue_train:
        _resume(run, say)
    if run.iteration >= run.last:
        return run
    text = json.dumps(to_dict(_with_absolute_paths(config)), indent=2) + "\n"
    try:
        checkpoint.write_atomically(folder / CONFIG, lambda partial: partial.write_text(text))
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror or error}") from None
    return run


def _load(
    config: TrainConfig,
    folder: Path,
    choice: Choice,
    device: torch.device,
    say: Say,
    progress: Callable[[int, int], None] | None,
) -> tuple[Pictures, Loader, DataConfig]:
    """Find and check the pictures, make their loader, and open the run's folder, where the built-in ones are drawn."""
    data = config.data
    if data.is_builtin:
        open_folder(folder, config.run.overwrite)
        toy.write(folder / DATASET, config.run.seed)
        data, progress = dataclasses.replace(data, dataroot=folder / DATASET), None
    pictures = find_pictures(data, config.run.seed, say, progress, Needs(config.model.size_multiple, config.model.least_side))
    a, b = _sources(data, config, pictures)
    inside = [path for path in (*a.paths, *b.paths) if path.resolve().is_relative_to(folder.resolve())]
    if inside and config.run.overwrite and not config.data.is_builtin:
        raise UserError(f"--overwrite would delete its own pictures: {inside[0]} lies in {folder}")
    loader = make_loader(choice, a, b, _plan(config, pictures), device, data, say)
    if not config.data.is_builtin:
        open_folder(folder, config.run.overwrite)
    return pictures, loader, data


def _networks_that_fit(config: TrainConfig) -> dict[str, nn.Module]:
    """Return the networks, initialised. Raises UserError where they are larger than the memory."""
    try:
        return build_networks(config.model)
    except (RuntimeError, MemoryError) as error:
        model = config.model
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise UserError(f"{model.netG} with ngf {model.ngf} and {model.netD} with ndf {model.ndf} cannot be made: {reason}") from None


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with its pictures' folders as they are found from anywhere."""
    data = config.data
    folders = {name: getattr(data, name) for name in ("dataroot", "data_A", "data_B")}
    changes = {name: folder.absolute() for name, folder in folders.items() if folder is not None}
    return dataclasses.replace(config, data=dataclasses.replace(data, **changes))


def _size(data: DataConfig) -> str:
    sizes = {"resize_and_crop": f"{data.load_size} to {data.crop_size} pixels", "crop": f"{data.crop_size} pixels"}
    return sizes.get(data.preprocess, f"width {data.load_size}" if "width" in data.preprocess else "own size")


def _check_engine(config: TrainConfig, device: torch.device) -> None:
    """Raise UserError for what ``device`` or the networks cannot do, and is asked for by name."""
    options = config.engine
    for flag, value in (("graph", options.graph == "on"), ("nvtx", options.nvtx), ("overlap", options.overlap in ("wgrad", "phases"))):
        if value and device.type != "cuda":
            given = "" if flag == "nvtx" else f" {getattr(options, flag)}"
            raise UserError(f"--{flag}{given} needs a CUDA GPU, got --device {device.type}")
    if options.micro_batch is not None and config.model.norm == "batch":
        raise UserError("--micro_batch would change what batch norm computes: it looks at all pictures of a batch")


def _learning_rate(config: TrainConfig, batch: int) -> str:
    optim = config.optim
    scaled = f" = {optim.lr:g} x sqrt({batch}) (--lr_scaling sqrt)" if optim.lr_scaling == "sqrt" else ""
    return f"{config.scaled_lr(batch):g}{scaled}, {optim.lr_policy}"


def _networks(config: TrainConfig, engine: Engine) -> str:
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in engine.nets.items()}
    model = config.model
    return f"{model.netG} ngf {model.ngf} ({count['G_AB']:,} weights each), {model.netD} ndf {model.ndf} ({count['D_A']:,} each)"


def _plan(config: TrainConfig, pictures: Pictures) -> Plan:
    data = config.data
    return Plan(config.run.seed, len(pictures.train_A), len(pictures.train_B), data.batch_size, data.serial_batches, not data.no_flip)


def _sources(data: DataConfig, config: TrainConfig, pictures: Pictures) -> tuple[Source, Source]:
    model = config.model
    fit_A, fit_B = (Fit.of(data, channels, model.size_multiple) for channels in (model.input_nc, model.output_nc))
    return Source(pictures.train_A, fit_A, pictures.checked), Source(pictures.train_B, fit_B, pictures.checked)


def _resume(run: Run, say: Say) -> None:
    """Put ``run`` where it stopped: from its state, else from official files, whose weights alone are known."""
    config, folder = run.config, run.folder
    architecture = f"{config.model.netG} (ngf {config.model.ngf}, {config.model.norm} norm) of this run"
    state_file = folder / checkpoint.STATE
    if state_file.exists() and config.run.epoch == "latest":
        state = load_tensors(state_file)
        _check_state(state, run, state_file, say)
        for name, net in run.engine.nets.items():
            checkpoint.fit_weights(net, state["nets"][name], f"{state_file} ({name})", architecture)
        run.engine.load_state_dict(state)
        run.iteration, run.first, run.extra = state["iteration"], state["first"], state["extra"]
        say(f"continuing {folder} after iteration {run.iteration}")
        return
    files = {name: checkpoint.weights_file(folder, config.run.epoch, name) for name in run.engine.nets}
    lacking = [str(file) for file in files.values() if not file.exists()]
    if lacking:
        there = ", ".join(checkpoint.saved_epochs(folder)) or "none"
        raise UserError(f"{lacking[0]}: no such file; weights in {folder}: {there}")
    for name, file in files.items():
        network = loading.choose(loading.read_networks(file), file, generator=name in GENERATORS)
        checkpoint.fit_weights(run.engine.nets[name], network.weights, file, architecture)
    if run.engine.average is not None:
        run.engine.average.restart()
    say(
        f"starting from the weights {folder}/{config.run.epoch}_net_*.pth with fresh optimizers, pools and epoch "
        f"{config.optim.epoch_count}: such files hold nothing else"
    )


def _check_state(state: Any, run: Run, file: Path, say: Say) -> None:
    """Raise UserError where ``state`` is not of this version or not of this configuration; say where its pictures were others."""
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        raise UserError(f"{file}: not a state that this version can continue")
    ours = to_dict(run.config)
    for group, name in FIXED:
        was, now = state["config"][group][name], ours[group][name]
        if was != now:
            raise UserError(f"{file}: {name} was {was} and cannot become {now} in the middle of a run")
    now_A, now_B = fingerprint(run.pictures.train_A), fingerprint(run.pictures.train_B)
    if state["pictures"] != [now_A, now_B]:
        say("the training pictures are not the ones that this run began with: it goes on with those that are there now")
    if state.get("loader", run.choice.kind) != run.choice.kind:
        say(f"pictures were read by {state['loader']} and are now by {run.choice.kind}, whose resizing differs by a level here and there")
