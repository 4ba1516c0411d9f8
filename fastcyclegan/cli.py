"""The command line: made from the configuration dataclasses by tyro. A user's mistake is one line on standard
error and exit code 2.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import tyro

from fastcyclegan.api import CycleGAN
from fastcyclegan.checkpoints.describe import InspectConfig, describe
from fastcyclegan.checkpoints.loading import settings_of
from fastcyclegan.checkpoints.run_files import read_config
from fastcyclegan.config import BUILTIN, RunConfig, TrainConfig, to_dict, with_changes
from fastcyclegan.console import Console
from fastcyclegan.data import builtin
from fastcyclegan.data.dataset_report import ReportConfig, report_dataset
from fastcyclegan.data.download import DATASETS, ELSEWHERE, SERVER, download
from fastcyclegan.engine import require_impl, resolve_device
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.inference.translate_folder import TranslateConfig, translate_folder
from fastcyclegan.training.run_report import PAGE
from fastcyclegan.training.trainer import Trainer

Config = TypeVar("Config")


@dataclass(frozen=True)
class DownloadConfig:
    """Fetch one of the authors' datasets, unpack it and open every image. What a broken connection left is
    gone on from.
    """

    #: Its name, such as horse2zebra; --list shows them all.
    name: Annotated[str | None, tyro.conf.Positional] = None
    #: List the names and leave.
    list: bool = False
    #: Folder that gets NAME/trainA, NAME/trainB and so on.
    output: Path = Path("datasets")
    #: A zip of it that was fetched by other means: unpacked instead of fetching, and kept.
    archive: Path | None = None
    #: Where NAME.zip is; a mirror of yours may have it too.
    server: str = SERVER
    #: Keep the fetched zip.
    keep_archive: bool = False


_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def _builtin_defaults() -> Iterator[str]:
    for group in BUILTIN.values():
        for name, value in group.items():
            yield f"{name} {value}"


TRAIN_HELP = """Train CycleGAN on two folders of images. Without any, on a small built-in dataset, \
in a few minutes.

Flags are those of the official code, with _ or -. Ctrl-C saves and ends; --continue_train --name NAME \
goes on from there.

The built-in dataset has defaults of its own: """ + ", ".join(_builtin_defaults())


def _description(kind: type) -> str:
    """Return the docstring of ``kind`` as one paragraph."""
    return " ".join(str(kind.__doc__).split())


def _parse(
    kind: type[Config], args: Sequence[str] | None, description: str, default: Config | None = None
) -> Config:
    given: dict[str, Any] = {}
    if default is not None:
        given["default"] = default
    return tyro.cli(kind, args=args, description=description, config=_MARKERS, use_underscores=True, **given)


def parse_train(args: Sequence[str] | None = None) -> TrainConfig:
    """Return the configuration that ``args`` ask for.

    What is not given comes from the run that is continued, else from the built-in dataset's preset where no
    images are named, else from the defaults.
    """
    args = _arguments(args)
    base = _base(_given(args))
    # A switch that is on by default would be shown, and taken, as its opposite: so all are off to the parser,
    # and set again after it.
    on: dict[str, dict[str, bool]] = {}
    off: dict[str, dict[str, bool]] = {}
    for group, fields in to_dict(base).items():
        switches = [name for name, value in fields.items() if value is True]
        on[group] = dict.fromkeys(switches, True)
        off[group] = dict.fromkeys(switches, False)
    parsed = _parse(TrainConfig, args, TRAIN_HELP, with_changes(base, off))
    return with_changes(parsed, on)


def _arguments(args: Sequence[str] | None) -> Sequence[str]:
    """Return ``args``, by default those of the process.

    Raises UserError for an empty value, such as an unset shell variable gives: as a path it would mean the
    current folder.
    """
    if args is None:
        args = sys.argv[1:]
    for flag, value in zip(["", *args], args, strict=False):
        if value == "":
            raise UserError(f"{flag}: the value is empty")
        if value.startswith("--") and value.endswith("="):
            raise UserError(f"{value[:-1]}: the value is empty")
    return args


def _given(args: Sequence[str]) -> dict[str, str]:
    """Return the flags among ``args``, spelled with _, and what follows each."""
    flags = {}
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            if not equals:
                value = following
            flags[name.replace("-", "_")] = value
    return flags


def _base(given: dict[str, str]) -> TrainConfig:
    """Return the configuration that the flags given change."""
    if "continue_train" in given and "name" in given:
        return _continued(given)
    if {"dataroot", "data_A", "data_B", "help"} & given.keys():
        return TrainConfig()
    return with_changes(TrainConfig(), BUILTIN)


def _continued(given: dict[str, str]) -> TrainConfig:
    """Return the configuration of the run that is continued, or that of the official files in its folder."""
    folder = Path(given.get("checkpoints_dir", RunConfig.checkpoints_dir), given["name"])
    saved = read_config(folder)
    if saved is not None:
        # What belongs to one start is not continued; and a run that was moved is where it was found.
        start = {"continue_train": False, "overwrite": False, "dry_run": False, "epoch": RunConfig.epoch}
        return with_changes(saved, {"run": {**start, "checkpoints_dir": folder.parent}})
    if folder.is_dir() and not {"dataroot", "data_A"} & given.keys():
        raise UserError(
            f"{folder} does not say what it was trained on: give --dataroot, or --data_A and --data_B"
        )
    # Official files alone: the networks are those that the files hold.
    epoch = given.get("epoch", RunConfig.epoch)
    return with_changes(TrainConfig(), {"model": settings_of(folder, epoch)})


def _run(main: Callable[[], int]) -> int:
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        # A disk that is full, a folder that may not be written: what the system says of the file.
        file = error.filename
        if not file:
            file = "input or output"
        print(f"error: {file}: {system_reason(error)}", file=sys.stderr)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = "the system gives no more"
        if str(error):
            reason = str(error).splitlines()[0]
        print(f"error: out of memory: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has a class of its own for a GPU, none for the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


@contextlib.contextmanager
def _kernel_warnings_as_lines(console: Console) -> Iterator[None]:
    """Print what the kernels warn of as one line, without the place in their code, which tells a user
    nothing.
    """
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(filename).parent.name == "kernels":
            console.log(f"warning: {message}")
        else:
            before(message, category, filename, *rest)

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _print_config(config: TrainConfig, console: Console) -> None:
    device = resolve_device(config.run)
    require_impl(config.model.impl, device)
    console.log(f"device {device}, torch {torch.__version__}")
    for group, values in to_dict(config).items():
        console.table(f"{group}:", values)


def _print_score(trainer: Trainer, console: Console) -> None:
    """Print how well the held-out images of the built-in dataset were translated."""
    engine, images = trainer.run.engine, trainer.run.images
    assert images is not None
    held_out = {"A": images.test_A, "B": images.test_B}
    count = len(held_out["A"])
    console.log(f"built-in dataset, {count} held-out images a side, small networks made for it alone:")
    for here, there in ("AB", "BA"):
        translate = functools.partial(engine.translate, f"G_{here}{there}")
        found = builtin.score(translate, held_out[here], held_out[there], engine.device)
        console.log(
            f"  {here} to {there}: {found.gap_closed:.2f} of the domains' gap in stripes closed (1 is all); "
            f"distance to the true counterpart {found.distance_ratio:.2f} of doing nothing (0 is perfect)"
        )


def _train(args: Sequence[str] | None) -> int:
    console = Console()
    config = parse_train(args)
    if config.run.dry_run:
        _print_config(config, console)
        return 0
    with _kernel_warnings_as_lines(console):
        trainer = CycleGAN(config).train(console)
    run = trainer.run
    if trainer.stop is not None:
        where = run.config.run.checkpoints_dir
        again = f"--continue_train --name {run.config.run.name}"
        if where != RunConfig.checkpoints_dir:
            again += f" --checkpoints_dir {where}"
        console.log(f"saved after iteration {run.iteration} of {run.last}; go on with {again}")
        return 128 + trainer.stop
    if run.config.data.is_builtin:
        _print_score(trainer, console)
    if run.iteration == trainer.started_at:
        console.log(f"nothing left to train: iteration {run.iteration} is done, and the end is {run.last}")
    else:
        console.log(f"done: iteration {run.iteration} of {run.last}")
    if run.folder is not None:
        console.log(f"images: {run.folder / 'samples'} and {run.folder / PAGE}")
    return 0


def _translate(args: Sequence[str] | None) -> int:
    description = "Translate an image, or a folder of them, with a trained generator."
    config = _parse(TranslateConfig, _arguments(args), description)
    console = Console()
    with _kernel_warnings_as_lines(console):
        translate_folder(config, console)
    return 0


def _list_datasets(console: Console) -> None:
    rows = {}
    for name, dataset in DATASETS.items():
        rows[name] = dataset.what
        if dataset.mib is not None:
            rows[name] += f", {dataset.mib:,} MiB"
    for name, why in ELSEWHERE.items():
        rows[name] = f"not there: {why}"
    console.table(f"the authors' datasets, at {SERVER}:", rows)


def _download(args: Sequence[str] | None) -> int:
    args = _arguments(args)
    console = Console()
    config = _parse(DownloadConfig, args, _description(DownloadConfig))
    if config.list:
        _list_datasets(console)
        return 0
    if config.name is None:
        raise UserError("which dataset? Give its name, such as horse2zebra; --list shows them all")

    def progress(done: int, total: int) -> None:
        if console.is_terminal:
            console.progress(done, total, f"{config.name}: {done / 2**20:,.1f} of {total / 2**20:,.1f} MiB")

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
    console.log(f"train on it: {command}")
    return 1 if bad else 0


def _check_dataset(args: Sequence[str] | None) -> int:
    config = _parse(ReportConfig, _arguments(args), _description(ReportConfig))
    good = report_dataset(config, Console())
    return 0 if good else 1


def _inspect(args: Sequence[str] | None) -> int:
    config = _parse(InspectConfig, _arguments(args), _description(InspectConfig))
    console = Console()
    for line in describe(config.file):
        console.log(line)
    return 0


def train(args: Sequence[str] | None = None) -> int:
    """The command ``train.py``; returns its exit code."""
    return _run(lambda: _train(args))


def translate(args: Sequence[str] | None = None) -> int:
    """The command ``translate.py``; returns its exit code."""
    return _run(lambda: _translate(args))


def download_dataset(args: Sequence[str] | None = None) -> int:
    """The command ``download_dataset.py``; returns its exit code: 1 where some images are broken."""
    return _run(lambda: _download(args))


def check_dataset(args: Sequence[str] | None = None) -> int:
    """The command ``check_dataset.py``; returns its exit code: 1 where some images are broken."""
    return _run(lambda: _check_dataset(args))


def inspect_checkpoint(args: Sequence[str] | None = None) -> int:
    """The command ``inspect_checkpoint.py``; returns its exit code."""
    return _run(lambda: _inspect(args))
