"""The command line: made from the configuration dataclasses by tyro. A user's mistake is one line on standard
error and exit code 2.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import tyro

from fastcyclegan.api import CycleGAN
from fastcyclegan.checkpoints.describe import InspectConfig, describe
from fastcyclegan.checkpoints.loading import settings_of
from fastcyclegan.checkpoints.run_files import read_config
from fastcyclegan.config import BUILTIN, RunConfig, TrainConfig, to_dict, with_changes
from fastcyclegan.console import Console
from fastcyclegan.data.builtin import distance_ratio, gap_closed
from fastcyclegan.data.dataset_report import ReportConfig, report_dataset
from fastcyclegan.data.download import DATASETS, ELSEWHERE, SERVER, download
from fastcyclegan.data.image_file import open_picture
from fastcyclegan.data.pixels import to_pixels, to_unit_range
from fastcyclegan.engine import require_impl, resolve_device
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translate_folder import TranslateConfig, translate_folder
from fastcyclegan.training.run_report import PAGE
from fastcyclegan.training.trainer import Trainer

Config = TypeVar("Config")


@dataclass(frozen=True)
class DownloadConfig:
    """Fetch one of the authors' datasets, unpack it and open every picture. What a broken connection left is
    gone on from.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Its name, such as horse2zebra; --list shows them all."""
    list: bool = False
    """List the names and leave."""
    output: Path = Path("datasets")
    """Folder that gets NAME/trainA, NAME/trainB and so on."""
    archive: Path | None = None
    """A zip of it that was fetched by other means: unpacked instead of fetching, and kept."""
    server: str = SERVER
    """Where NAME.zip is; a mirror of yours may have it too."""
    keep_archive: bool = False
    """Keep the fetched zip."""


_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)

TRAIN_HELP = """Train CycleGAN on two folders of pictures. Without any, on a small built-in dataset, \
in a few minutes.

Flags are those of the official code, with _ or -. Ctrl-C saves and ends; --continue_train --name NAME \
goes on from there.

The built-in dataset has defaults of its own: """ + ", ".join(
    f"{name} {value}" for group in BUILTIN.values() for name, value in group.items()
)


def _parse(
    kind: type[Config], args: Sequence[str] | None, description: str, default: Config | None = None
) -> Config:
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(kind, args=args, description=description, config=_MARKERS, use_underscores=True, **given)


def parse_train(args: Sequence[str] | None = None) -> TrainConfig:
    """Return the configuration that ``args`` ask for.

    What is not given comes from the run that is continued, else from the built-in dataset's preset where no
    pictures are named, else from the defaults.
    """
    args = sys.argv[1:] if args is None else args
    _refuse_empty(args)
    base = _base(_given(args))
    # A switch that is on by default would be shown, and taken, as its opposite: so all are off to the parser,
    # and set again after it.
    on = {
        group: {name: True for name, value in fields.items() if value is True}
        for group, fields in to_dict(base).items()
    }
    off = {group: dict.fromkeys(names, False) for group, names in on.items()}
    return with_changes(_parse(TrainConfig, args, TRAIN_HELP, with_changes(base, off)), on)


def _refuse_empty(args: Sequence[str]) -> None:
    """Raise UserError for an empty value, such as an unset shell variable gives: as a path it would mean the
    current folder.
    """
    for flag, value in zip(["", *args], args, strict=False):
        if value == "" or (value.startswith("--") and value.endswith("=")):
            raise UserError(f"{flag if value == '' else value[:-1]}: the value is empty")


def _given(args: Sequence[str]) -> dict[str, str]:
    """Return the flags among ``args``, spelled with _, and what follows each."""
    flags = {}
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            flags[name.replace("-", "_")] = value if equals else following
    return flags


def _base(given: dict[str, str]) -> TrainConfig:
    """Return the configuration that the flags given change."""
    if "continue_train" in given and "name" in given:
        folder = Path(given.get("checkpoints_dir", RunConfig.checkpoints_dir), given["name"])
        base = read_config(folder)
        if base is not None:
            # What belongs to one start is not continued; and a run that was moved is where it was found.
            start = {"continue_train": False, "overwrite": False, "dry_run": False, "epoch": RunConfig.epoch}
            return with_changes(base, {"run": {**start, "checkpoints_dir": folder.parent}})
        if folder.is_dir() and not {"dataroot", "data_A"} & given.keys():
            raise UserError(
                f"{folder} does not say what it was trained on: give --dataroot, or --data_A and --data_B"
            )
        # Official files alone: the networks are those that the files hold.
        return with_changes(
            TrainConfig(), {"model": settings_of(folder, given.get("epoch", RunConfig.epoch))}
        )
    builtin = not {"dataroot", "data_A", "data_B", "help"} & given.keys()
    return with_changes(TrainConfig(), BUILTIN) if builtin else TrainConfig()


def _run(main: Callable[[], int]) -> int:
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        # A disk that is full, a folder that may not be written: what the system says of the file.
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
    except (MemoryError, RuntimeError) as error:
        # Out of memory: torch has a class of its own for a GPU, none for the CPU.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(
            error
        ):
            raise
        print(
            "error: out of memory:"
            f" {str(error).splitlines()[0] if str(error) else 'the system gives no more'}",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 2


@contextlib.contextmanager
def _kernel_warnings_as_lines(console: Console) -> Iterator[None]:
    """Print what the kernels warn of as one line, without the place in their code, which tells a user
    nothing.
    """
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(filename).parent.name == "kernels":
            console.say(f"warning: {message}")
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
    console.say(f"device {device}, torch {torch.__version__}")
    for group, values in to_dict(config).items():
        console.table(f"{group}:", values)


def _score_builtin(trainer: Trainer, console: Console) -> None:
    """Print how well the held-out pictures of the built-in dataset were translated."""
    run = trainer.run
    assert run.pictures is not None
    held_out = {"A": run.pictures.test_A, "B": run.pictures.test_B}
    real = {
        side: np.stack([np.asarray(open_picture(path)) for path in paths]) for side, paths in held_out.items()
    }
    console.say(
        f"built-in dataset, {len(real['A'])} held-out pictures a side, small networks made for it alone:"
    )
    for here, there in ("AB", "BA"):
        images = to_unit_range(torch.from_numpy(real[here]), run.engine.device)
        fake = to_pixels(run.engine.translate(f"G_{here}{there}", images))
        closed = gap_closed(real[here], fake, real[there])
        ratio = distance_ratio(real[here], fake, real[there])
        console.say(
            f"  {here} to {there}: {closed:.2f} of the domains' gap in stripes closed (1 is all); "
            f"distance to the true counterpart {ratio:.2f} of doing nothing (0 is perfect)"
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
        elsewhere = "" if where == RunConfig.checkpoints_dir else f" --checkpoints_dir {where}"
        again = f"--continue_train --name {run.config.run.name}{elsewhere}"
        console.say(f"saved after iteration {run.iteration} of {run.last}; go on with {again}")
        return 128 + trainer.stop
    if run.config.data.is_builtin:
        _score_builtin(trainer, console)
    if run.iteration == trainer.started_at:
        console.say(f"nothing left to train: iteration {run.iteration} is done, and the end is {run.last}")
    else:
        console.say(f"done: iteration {run.iteration} of {run.last}")
    if run.folder is not None:
        console.say(f"pictures: {run.folder / 'samples'} and {run.folder / PAGE}")
    return 0


def _translate(args: Sequence[str] | None) -> int:
    args = sys.argv[1:] if args is None else args
    _refuse_empty(args)
    config = _parse(
        TranslateConfig, args, "Translate a picture, or a folder of them, with a trained generator."
    )
    console = Console()
    with _kernel_warnings_as_lines(console):
        translate_folder(config, console)
    return 0


def _download(args: Sequence[str] | None) -> int:
    args = sys.argv[1:] if args is None else args
    _refuse_empty(args)
    console = Console()
    config = _parse(DownloadConfig, args, str(DownloadConfig.__doc__))
    if config.list:
        rows = {name: f"{of.what}{f', {of.mib:,} MiB' if of.mib else ''}" for name, of in DATASETS.items()}
        console.table(
            f"the authors' datasets, at {SERVER}:",
            {**rows, **{name: f"not there: {why}" for name, why in ELSEWHERE.items()}},
        )
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
            say=console.say,
            progress=progress,
        )
    skip = " --skip_bad_images" if bad else ""
    console.say(
        f"train on it: python scripts/train.py --compile --dataroot {config.output / config.name}{skip}"
    )
    return 1 if bad else 0


def _check_dataset(args: Sequence[str] | None) -> int:
    args = sys.argv[1:] if args is None else args
    _refuse_empty(args)
    return 0 if report_dataset(_parse(ReportConfig, args, str(ReportConfig.__doc__)), Console()) else 1


def _inspect(args: Sequence[str] | None) -> int:
    args = sys.argv[1:] if args is None else args
    _refuse_empty(args)
    config, console = _parse(InspectConfig, args, str(InspectConfig.__doc__)), Console()
    for line in describe(config.file):
        console.say(line)
    return 0


def train(args: Sequence[str] | None = None) -> int:
    """The command ``train.py``; returns its exit code."""
    return _run(lambda: _train(args))


def translate(args: Sequence[str] | None = None) -> int:
    """The command ``translate.py``; returns its exit code."""
    return _run(lambda: _translate(args))


def download_dataset(args: Sequence[str] | None = None) -> int:
    """The command ``download_dataset.py``; returns its exit code: 1 where some pictures are broken."""
    return _run(lambda: _download(args))


def check_dataset(args: Sequence[str] | None = None) -> int:
    """The command ``check_dataset.py``; returns its exit code: 1 where some pictures are broken."""
    return _run(lambda: _check_dataset(args))


def inspect_checkpoint(args: Sequence[str] | None = None) -> int:
    """The command ``inspect_checkpoint.py``; returns its exit code."""
    return _run(lambda: _inspect(args))
