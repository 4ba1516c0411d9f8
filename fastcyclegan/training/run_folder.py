"""Name, check and open the folder of a run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.run_files import CONFIG
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.training.run_report import CURVES, PAGE, STATS

DATASET = "dataset"


def _default_name(config: TrainConfig) -> str:
    """Return a default name for a run: the dataset's name and the first free number."""
    data = config.data
    if data.is_builtin:
        stem = "shapes"
    elif data.dataroot is not None:
        stem = data.dataroot.resolve().name
    else:
        stem = "2".join(folder.resolve().name for folder in (data.data_A, data.data_B) if folder is not None)
    folder, number = config.run.checkpoints_dir, 1
    # A name is also taken if it belongs to a broken symbolic link.
    while (folder / f"{stem}_{number}").exists() or (folder / f"{stem}_{number}").is_symlink():
        number += 1
    return f"{stem}_{number}"


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` contains a configuration, a training state or weights of a run."""
    has_files = (folder / CONFIG).exists() or (folder / run_files.STATE).exists()
    return has_files or len(run_files.saved_epochs(folder)) > 0


def _remove_run(folder: Path) -> None:
    """Delete the files of a run from its folder, and nothing else that may be there."""
    for name in (CONFIG, run_files.STATE, STATS, PAGE, CURVES):
        (folder / name).unlink(missing_ok=True)
    for file in folder.glob("*_net_*.pth"):
        file.unlink()
    for name in ("samples", "tensorboard", DATASET):
        shutil.rmtree(folder / name, ignore_errors=True)


def choose_folder(config: TrainConfig) -> tuple[Path, TrainConfig]:
    """Return the run's folder, and ``config`` with its name. Changes no files.

    Raises UserError if the name is taken or missing.
    """
    run = config.run
    if run.continue_train and run.name is None:
        runs = [path.name for path in sorted(run.checkpoints_dir.glob("*")) if is_run(path)]
        names = ", ".join(runs) if runs else "none"
        raise UserError(f"--continue_train needs --name; runs in {run.checkpoints_dir}: {names}")
    name = run.name if run.name else _default_name(config)
    folder = run.checkpoints_dir / name
    if run.continue_train and not (folder.is_dir() and is_run(folder)):
        raise UserError(f"{folder}: no run to resume (found neither {run_files.STATE} nor *_net_*.pth)")
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a broken symbolic link; use another --name")
    if folder.exists() and not run.continue_train and (not folder.is_dir() or any(folder.iterdir())):
        if not run.overwrite:
            raise UserError(f"{folder} already exists: use --continue_train, --overwrite or another --name")
        if not folder.is_dir() or not is_run(folder):
            raise UserError(
                f"{folder} is not a run folder, so --overwrite does not replace it; use another --name"
            )
    return folder, dataclasses.replace(config, run=dataclasses.replace(run, name=name))


def open_folder(folder: Path, overwrite: bool) -> None:
    """Create the run's folder, after removing the old run in it if ``overwrite`` is set.

    Raises UserError if the folder cannot be written to.
    """
    try:
        if overwrite and folder.exists():
            _remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run_files.remove_partials(folder)
        probe = folder / ".writable.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {system_reason(error)}") from None
