"""The command-line programs. tyro generates their options from the configuration dataclasses.

Mistakes that the user can fix are reported as one line on standard error, with exit code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro

from fastcyclegan.checkpoints.describe import InspectConfig, describe
from fastcyclegan.checkpoints.loading import recipe_in, settings_of
from fastcyclegan.checkpoints.run_files import read_config
from fastcyclegan.command_line.exit_codes import run, run_to_the_end
from fastcyclegan.command_line.parsing import arguments, asks_for_help, description, flags_in, parse
from fastcyclegan.config import (
    ModelSettings,
    RunConfig,
    TrainConfig,
    config_class,
    default_config,
    to_dict,
    with_changes,
)
from fastcyclegan.console import Console
from fastcyclegan.data.dataset_report import ReportConfig, report_dataset
from fastcyclegan.data.download import DATASETS, ELSEWHERE, SERVER, download
from fastcyclegan.data.fit import require_file_channels
from fastcyclegan.data.pixels import NoNumbersError
from fastcyclegan.engine import require_impl, resolve_device
from fastcyclegan.errors import StoppedError, UserError
from fastcyclegan.inference.translate_folder import TranslateConfig, translate_folder
from fastcyclegan.metrics.names import shown
from fastcyclegan.models import model_class
from fastcyclegan.official.flags import ACCEPTED, RESERVED, OfficialFlags, spelled, translated, with_suffix
from fastcyclegan.official.replacement import replacement
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.recipes.registry import flags_of, names, owners
from fastcyclegan.settings.arguments import typed_values
from fastcyclegan.settings.crop_size import joined_arguments
from fastcyclegan.training.exclusive import require_effect, without_replaced
from fastcyclegan.training.frozen import require_possible_freeze
from fastcyclegan.training.initial_weights import (
    before_files,
    require_fitting_files,
    with_architecture_of_files,
)
from fastcyclegan.training.run_folder import resume_command
from fastcyclegan.training.run_report import PAGE
from fastcyclegan.training.signals import nothing_to_save
from fastcyclegan.training.start import launched_processes
from fastcyclegan.training.trainer import Trainer
from fastcyclegan.training.wandb_tracker import import_wandb

Config = TypeVar("Config")


@dataclass(frozen=True)
class DownloadConfig:
    """Download one of the CycleGAN authors' datasets, unpack it and check that every image can be opened.
    An interrupted download is resumed.
    """

    #: Name of the dataset, such as horse2zebra; --list shows all names.
    name: Annotated[str | None, tyro.conf.Positional] = None
    #: List the available datasets and exit.
    list: bool = False
    #: Folder in which NAME/trainA, NAME/trainB and so on are created.
    output: Path = Path("datasets")
    #: Zip file of the dataset, if you already have it. It is unpacked instead of downloading the dataset, and
    #: is not deleted.
    archive: Path | None = None
    #: URL of the folder that contains NAME.zip, on the original server or a mirror.
    server: str = SERVER
    #: Keep the downloaded zip file.
    keep_archive: bool = False


def _train_help(recipe: type[Recipe]) -> str:
    """Return the description of train.py for ``recipe``."""
    parts = [recipe.summary if recipe.summary else f"Train {recipe.title}."]
    if recipe.builtin is not None:
        parts[0] += " Without images, it trains on a small built-in dataset, which takes a few minutes."
    parts += [
        "The flags are those of the official code, spelled with _ or -. Ctrl-C saves the run and exits;"
        " resume it with --continue_train --name NAME. A switch of the saved run is turned off by its name"
        " with no_, or without it: --no_compile, --flip.",
        f"The recipes are {', '.join(names())}; --help --model NAME shows the flags of another.",
        f"Also accepted: {ACCEPTED}",
    ]
    if recipe.builtin is not None:
        values = [f"{name} {value}" for group in recipe.builtin.values() for name, value in group.items()]
        parts.append(f"The built-in dataset has its own defaults: {', '.join(values)}")
    return "\n\n".join(parts)


def parse_train(
    args: Sequence[str] | None = None, log: Callable[[str], object] = lambda line: None
) -> TrainConfig:
    """Return the training configuration for the command line ``args``.

    With --continue_train, flags that are not given are taken from the run to resume, except those that a
    given one excludes. Otherwise, they are taken from the preset of the built-in dataset if no images are
    given, and from the defaults if images are given. ``log`` is called with a line for official flags that
    have no effect, and one for those that have another name.
    """
    official = _in_our_flags(arguments(args))
    base = _base(flags_in(official.args))
    args, switched_off = _switched_off(official.args, base)
    flags = flags_in(args)
    _require_once(args, "init_from")
    # tyro would show and parse a switch that is on by default as its negation. So the parser sees all
    # switches as off, and those that were on are set again afterwards.
    on: dict[str, dict[str, bool]] = {}
    off: dict[str, dict[str, bool]] = {}
    for group, fields in to_dict(base).items():
        switches = [name for name, value in fields.items() if value is True]
        on[group] = dict.fromkeys((name for name in switches if name not in switched_off), True)
        off[group] = dict.fromkeys(switches, False)
    kind = config_class(base.model.model)
    defaults = _as(kind, with_changes(base, off))
    parsed = _as(TrainConfig, parse(kind, args, _train_help(base.recipe), defaults, owners))
    for line in official.notes:
        log(line)
    config = with_changes(parsed, on)
    require_effect(config, flags)
    if config.run.continue_train:
        return config
    return with_architecture_of_files(config, flags.keys() | switched_off)


def _as(kind: type[TrainConfig], config: TrainConfig) -> TrainConfig:
    """Return ``config`` as an instance of ``kind``, which has the same groups."""
    return kind(**{group.name: getattr(config, group.name) for group in dataclasses.fields(TrainConfig)})


def _require_once(args: Sequence[str], name: str) -> None:
    """Raise UserError if the flag ``name``, which takes several values, is given more than once."""
    if [spelled(arg) for arg in args].count(name) > 1:
        raise UserError(f"--{name} is given twice: write both values after one --{name}")


def _in_our_flags(args: Sequence[str]) -> OfficialFlags:
    """Return ``args``, which may contain official flags, in our own flags."""
    if asks_for_help(args):
        return OfficialFlags(list(args))
    recipe = _recipe_of(flags_in(args))
    official = translated(args, recipe.name, flags_of(recipe))
    if official.suffix is not None:
        # The same flags give the same folder in the first run and when it is resumed.
        flags = flags_in(joined_arguments(official.args))
        fresh = _base({name: value for name, value in flags.items() if name != "continue_train"})
        settings = {name: value for group in to_dict(fresh).values() for name, value in group.items()}
        settings |= typed_values(config_class(fresh.model.model), flags)
        official.args = with_suffix(official.args, official.suffix, settings)
    return official


def _switched_off(args: Sequence[str], base: TrainConfig) -> tuple[list[str], set[str]]:
    """Return ``args`` without the flags that turn a switch off, and the names of these switches.

    Such a flag is the name of the switch with no_, or without it: --no_compile, but --flip for no_flip. The
    official --no_dropout has no such flag, because --dropout would seem to turn dropout on. Raises UserError
    if a switch is turned both on and off.
    """
    opposites = {}
    for fields in to_dict(default_config(base.model.model)).values():
        for name in (name for name, value in fields.items() if value is False and name != "no_dropout"):
            opposites[name.removeprefix("no_") if name.startswith("no_") else f"no_{name}"] = name
    spelled = {arg: arg.removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")}
    off = {opposites[name] for name in spelled.values() if name in opposites}
    for name in off & set(spelled.values()):
        given = [arg for arg, spelling in spelled.items() if opposites.get(spelling, spelling) == name]
        raise UserError(f"{' and '.join(sorted(given))} contradict each other")
    return [arg for arg in args if opposites.get(spelled.get(arg, "")) is None], off


def _base(flags: dict[str, str]) -> TrainConfig:
    """Return the configuration whose settings are overridden by ``flags``."""
    if "continue_train" in flags and "name" in flags:
        return _resumed(flags)
    fresh = default_config(_model_of(flags))
    for name in flags_of(fresh.recipe):
        if name in RESERVED:
            raise UserError(
                f"the recipe {fresh.recipe.name}: its flag --{name} has another meaning on the command line"
            )
    builtin = fresh.recipe.builtin_for(flags)
    if builtin is None or {"dataroot", "data_A", "data_B", "data", "help"} & flags.keys():
        return without_replaced(before_files(fresh, flags), flags)
    return with_changes(fresh, builtin)


def _model_of(flags: dict[str, str]) -> str:
    """Return the name of the recipe that ``flags`` select."""
    name = flags.get("model", ModelSettings.model)
    if not name or name.startswith("--"):
        raise UserError("--model: no value given")
    return name


def _recipe_of(flags: dict[str, str]) -> type[Recipe]:
    """Return the recipe that ``flags`` select: without --model, that of the run that they resume."""
    if "model" not in flags and "continue_train" in flags and "name" in flags:
        saved = read_config(_folder_to_resume(flags))
        if saved is not None:
            return saved.recipe
    return default_config(_model_of(flags)).recipe


def _folder_to_resume(flags: dict[str, str]) -> Path:
    name = RunConfig(name=flags["name"]).name  # raises UserError for what is no folder name
    return Path(flags.get("checkpoints_dir", RunConfig.checkpoints_dir), str(name))


def _resumed(flags: dict[str, str]) -> TrainConfig:
    """Return the configuration of the run to resume, or one that matches the official files in its folder."""
    for flag in ("init_from", "init_from_B"):
        if flag in flags:
            raise UserError(f"--{flag} starts a new run, so it contradicts --continue_train")
    folder = _folder_to_resume(flags)
    saved = read_config(folder)
    if saved is not None:
        if "model" in flags and _model_of(flags) != saved.model.model:
            raise UserError(
                f"{folder} is a run of --model {saved.model.model}, which cannot be continued with --model"
                f" {flags['model']}"
            )
        # Settings of a single start are reset. The folder is the current one, in case the run was moved.
        start = {"continue_train": False, "overwrite": False, "dry_run": False, "epoch": RunConfig.epoch}
        saved = with_changes(saved, {"run": {**start, "checkpoints_dir": folder.parent}})
        return without_replaced(saved, flags)
    if folder.is_dir() and not {"dataroot", "data_A", "data"} & flags.keys():
        raise UserError(
            f"{folder} does not record its training images: give --dataroot, or --data_A and --data_B"
        )
    # There are only official files: infer the architecture from them.
    epoch = flags.get("epoch", RunConfig.epoch)
    model = _model_of(flags) if "model" in flags else recipe_in(folder).name
    fresh = default_config(model)
    settings = settings_of(folder, epoch, fresh.make_recipe())
    return without_replaced(with_changes(fresh, {"model": settings}), flags)


@contextlib.contextmanager
def _kernel_warnings_as_lines(console: Console) -> Iterator[None]:
    """Print warnings from the kernels as single lines, without their source location.

    The location is of no use to a user.
    """
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *others: Any) -> None:
        if Path(filename).parent.name == "kernels":
            console.log(f"warning: {message}")
        else:
            before(message, category, filename, *others)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _print_config(config: TrainConfig, console: Console) -> None:
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    require_possible_freeze(config)
    if not config.run.continue_train:
        require_fitting_files(config)
    if config.run.use_wandb:
        import_wandb()
    require_file_channels(config.make_recipe().file_channels)
    console.log(f"device {device}, torch {torch.__version__}")
    for group, values in to_dict(config).items():
        console.table(f"{group}:", values)


def _print_score(trainer: Trainer, console: Console) -> None:
    """Print scores of the translations of the built-in dataset's held-out images."""
    engine, images = trainer.run.engine, trainer.run.images
    assert images is not None
    console.log(
        f"built-in dataset ({len(images.test_A)} held-out images per domain, small networks made for it):"
    )
    try:
        lines = engine.recipe.builtin_scores(engine.translate, images, engine.device)
    except NoNumbersError:
        lines = ["no score, because the networks give no numbers for these images"]
    for line in lines:
        console.log(f"  {line}")


def _train(args: Sequence[str] | None) -> int:
    console = Console()
    config = parse_train(args, console.log)
    if config.run.dry_run:
        _print_config(config, console)
        return 0
    if launched_processes() > 1 and os.environ.get("LOCAL_RANK", "0") != "0":
        # The first process of this machine prints the reason. A launcher ends all when this one ends.
        time.sleep(10)
        return 2
    with _kernel_warnings_as_lines(console):
        try:
            trainer = model_class(config.model.model)(config).train(console)
        except StoppedError as stopped:
            console.log(str(stopped))
            return 128 + stopped.number
    run = trainer.run
    if trainer.stop is not None:
        saved = f"saved after iteration {run.iteration} of {run.last}"
        if run.iteration == trainer.started_at:
            saved = "stopped before the first iteration"
        console.log(f"{saved}; resume with {resume_command(run.config.run)}")
        return 128 + trainer.stop
    if run.config.data.is_builtin:
        _print_score(trainer, console)
    if trainer.is_out_of_patience and run.iteration < run.last:
        console.log(
            f"ended after iteration {run.iteration} of {run.last}: {run.config.evaluation.patience}"
            " evaluations in a row were no better than the best one (a larger --patience continues the run)"
        )
    elif run.iteration == trainer.started_at:
        console.log(
            f"nothing left to train: the run ends at iteration {run.last} and has reached {run.iteration}"
        )
    else:
        console.log(f"done: iteration {run.iteration} of {run.last}")
    _print_best(trainer, console)
    if run.folder is not None:
        console.log(f"images: {run.folder / 'samples'} and {run.folder / PAGE}")
    return 0


def _print_best(trainer: Trainer, console: Console) -> None:
    """Print which weights are the best, if the run was evaluated."""
    run, evaluations = trainer.run, trainer.evaluations
    if evaluations is None or evaluations.history.best is None:
        return
    best, history = evaluations.history.best, evaluations.history
    where = "" if run.folder is None else f", kept as {run.folder / 'best_net_*.pth'}"
    name = history.judge.removeprefix("eval_")
    console.log(f"best: {name} {shown(best[history.judge])} at iteration {best['iteration']}{where}")


def _translate(args: Sequence[str] | None) -> int:
    if args is None:
        args = sys.argv[1:]
    instead = replacement(args, [setting.name for setting in dataclasses.fields(TranslateConfig)])
    if instead is not None:
        raise UserError(instead)
    config = parse(TranslateConfig, args, description(TranslateConfig))
    console = Console()
    with _kernel_warnings_as_lines(console):
        failed = translate_folder(config, console)
    return 1 if failed else 0


def _list_datasets(console: Console) -> None:
    rows = {}
    for name, dataset in DATASETS.items():
        rows[name] = dataset.domains
        if dataset.mib is not None:
            rows[name] += f", {dataset.mib:,} MiB"
    for name, reason in ELSEWHERE.items():
        rows[name] = f"not on this server: {reason}"
    console.table(f"the authors' datasets at {SERVER}:", rows)


def _download(args: Sequence[str] | None) -> int:
    console = Console()
    config = parse(DownloadConfig, args, description(DownloadConfig))
    if config.list:
        _list_datasets(console)
        return 0
    if config.name is None:
        raise UserError("no dataset given: pass its name, such as horse2zebra; --list shows all names")

    def progress(received: int, total: int) -> None:
        if console.is_terminal:
            console.progress(
                received, total, f"{config.name}: {received / 2**20:,.1f} of {total / 2**20:,.1f} MiB"
            )

    with console:
        bad = download(
            config.name,
            config.output,
            server=config.server,
            archive=config.archive,
            keep_archive=config.keep_archive,
            log=console.log,
            progress=progress,
        )
    command = f"python scripts/train.py --compile --dataroot {config.output / config.name}"
    if bad:
        command += " --skip_bad_images"
    console.log(f"to train on it: {command}")
    return 1 if bad else 0


def _check_dataset(args: Sequence[str] | None) -> int:
    config = parse(ReportConfig, args, description(ReportConfig))
    console = Console()
    good = report_dataset(config, console)
    if console.failed:
        return 2
    return 0 if good else 1


def _inspect(args: Sequence[str] | None) -> int:
    config = parse(InspectConfig, args, description(InspectConfig))
    console = Console()
    for line in describe(config.file):
        console.log(line)
    return 2 if console.failed else 0


def train(args: Sequence[str] | None = None) -> int:
    """Run ``train.py`` and return its exit code."""
    with nothing_to_save():
        return run(lambda: _train(args))


def translate(args: Sequence[str] | None = None) -> int:
    """Run ``translate.py`` and return its exit code, which is 1 if some images did not fit into memory or
    the network gives no numbers for them, or if a check failed.
    """
    return run_to_the_end(lambda: _translate(args))


def download_dataset(args: Sequence[str] | None = None) -> int:
    """Run ``download_dataset.py`` and return its exit code, which is 1 if some images are broken."""
    return run_to_the_end(lambda: _download(args))


def check_dataset(args: Sequence[str] | None = None) -> int:
    """Run ``check_dataset.py`` and return its exit code, which is 1 if some images are broken."""
    return run_to_the_end(lambda: _check_dataset(args))


def inspect_checkpoint(args: Sequence[str] | None = None) -> int:
    """Run ``inspect_checkpoint.py`` and return its exit code."""
    return run_to_the_end(lambda: _inspect(args))
