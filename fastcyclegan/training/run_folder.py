"""The folder of a run: choose it, take it so that no other process can, and clean up after a failed start."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
from pathlib import Path

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.architecture import listed
from fastcyclegan.checkpoints.run_files import BEST, CONFIG, DATASET, LOCK, PREVIOUS, STATE
from fastcyclegan.checkpoints.weight_sets import NEXT, SETS
from fastcyclegan.config import RunConfig, TrainConfig
from fastcyclegan.data.loader import Log
from fastcyclegan.errors import UserError, printable, system_reason
from fastcyclegan.tensor_files import fitting_name
from fastcyclegan.training.run_lock import RunLock
from fastcyclegan.training.run_report import CURVES, EVALUATIONS, PAGE, REPLACED, STATS
from fastcyclegan.training.wandb_tracker import FILES, ID


def _stem(config: TrainConfig) -> str:
    """Return the beginning of a run's default name: the name of its dataset, as far as --name accepts it."""
    data = config.data
    if data.is_builtin:
        return "shapes"
    given = (data.dataroot, data.data_A, data.data_B, data.data)
    folders = [folder for folder in given if folder is not None]
    name = "2".join(folder.resolve().name for folder in folders).lstrip(".")
    if not name:
        return DATASET
    return "".join(character if character.isprintable() else "_" for character in name)


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` contains a configuration, a training state or weights of a run."""
    has_files = any((folder / name).exists() for name in (CONFIG, STATE, PREVIOUS))
    return has_files or len(run_files.saved_epochs(folder)) > 0


def resume_command(run: RunConfig, *, previous: bool = False) -> str:
    """Return the flags that resume the run: from its previous state if ``previous`` is true."""
    flags = f"--continue_train {_flag('--name', run.name)}"
    if run.checkpoints_dir != RunConfig.checkpoints_dir:
        flags += f" {_flag('--checkpoints_dir', run.checkpoints_dir)}"
    if previous:
        flags += " --epoch previous"
    return flags


def _flag(name: str, value: object) -> str:
    """Return a flag and its value as a shell needs them."""
    text = str(value)
    joint = "=" if text.startswith("-") else " "  # else it would be taken for a flag
    if printable(text) == text:
        return f"{name}{joint}{shlex.quote(text)}"
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"{name}{joint}$'{printable(escaped)}'"  # bash and zsh read the escapes


def _remove_run(folder: Path) -> None:
    """Delete the files of a run from its folder, and nothing else that may be there.

    The configuration goes last: until then, the folder is recognised as that of a run.
    """
    for name in ("samples", "tensorboard", FILES, DATASET):
        shutil.rmtree(folder / name, ignore_errors=True)
    for replaced in (*folder.glob(f"{REPLACED}*"), *folder.glob("replaced-best*")):
        shutil.rmtree(replaced, ignore_errors=True)
    for file in folder.glob("*_net_*.pth"):
        file.unlink()
    for name in (SETS, STATE, PREVIOUS, STATS, PAGE, CURVES, EVALUATIONS, BEST, f"{NEXT}{BEST}", ID, CONFIG):
        (folder / name).unlink(missing_ok=True)


def is_free(folder: Path) -> bool:
    """Return whether ``folder`` is empty, apart from what a start leaves there if it is killed."""
    names = {path.name for path in folder.iterdir()}
    if LOCK in names:
        names = {name for name in names if not (name.startswith(".") and name.endswith(".partial"))}
        names -= {LOCK, DATASET}
    return not names


class RunFolder:
    """The folder of the run that ``config`` describes. Its lock is held until ``release``.

    A folder that exists is locked at once. One that does not exist is created by ``open``, after everything
    that can fail, so that a run that cannot start neither creates nor replaces a folder. Raises UserError if
    the name is taken or missing, or if another process is writing to the folder.
    """

    def __init__(self, config: TrainConfig, log: Log) -> None:
        self.run, self.stem, self.log = config.run, _stem(config), log
        self.lock: RunLock | None = None
        self._created: list[Path] = []
        self._opened = False
        if self.run.continue_train and self.run.name is None:
            raise UserError(self._needs_name())
        if self.run.name is not None:
            self._check(self.path)
            if self.path.exists():
                self._lock()

    @property
    def path(self) -> Path:
        """The folder. Without --name, it is known only after ``open``."""
        return self.run.checkpoints_dir / str(self.run.name)

    def named(self, config: TrainConfig) -> TrainConfig:
        """Return ``config`` with the name of the folder."""
        return dataclasses.replace(config, run=dataclasses.replace(config.run, name=self.run.name))

    def _needs_name(self) -> str:
        runs = [path.name for path in sorted(self.run.checkpoints_dir.glob("*")) if is_run(path)]
        names = listed(runs, "runs") if runs else "none"
        return f"--continue_train needs --name; runs in {self.run.checkpoints_dir}: {names}"

    def _check(self, folder: Path) -> None:
        """Raise UserError if the run cannot use ``folder``. Changes no files."""
        run = self.run
        if run.continue_train and not (folder.is_dir() and is_run(folder)):
            raise UserError(f"{folder}: no run to resume (found none of {CONFIG}, {STATE} and *_net_*.pth)")
        if folder.is_symlink() and not folder.exists():
            raise UserError(f"{folder} is a broken symbolic link; use another --name")
        if run.continue_train or not folder.exists() or (folder.is_dir() and is_free(folder)):
            return
        if not run.overwrite:
            raise UserError(f"{folder} already exists: use --continue_train, --overwrite or another --name")
        # The lock's file marks the folder of a run that was killed while --overwrite removed it.
        if not folder.is_dir() or not (is_run(folder) or (folder / LOCK).exists()):
            raise UserError(
                f"{folder} is not a run folder, so --overwrite does not replace it; use another --name"
            )

    def _lock(self) -> None:
        try:
            self.lock = RunLock(self.path)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {system_reason(error)}") from None
        if self.lock.problem:
            self.log(f"{self.path}: {self.lock.problem}, so make sure that no other run is writing there")
        try:
            self._check(self.path)  # another process may have changed it before the lock was acquired
        except UserError:
            self.release()
            raise

    def open(self) -> None:
        """Create the folder, or empty it if the run replaces an older one, and remove what is half-written.

        Raises UserError if another process took the name meanwhile or the folder cannot be written to.
        """
        try:
            if self.lock is None:
                self._create()
            self._opened = True
            if not self.run.continue_train:
                _remove_run(self.path)
            run_files.remove_partials(self.path)
            probe = self.path / ".writable.partial"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {system_reason(error)}") from None

    def _create(self) -> None:
        """Create the folder and lock it. Without --name, its name gets the first free number."""
        self._make_parents()
        if self.run.name is not None:
            try:
                self.path.mkdir()
                self._created.insert(0, self.path)
            except FileExistsError:
                self._check(self.path)
            self._lock()
            return
        number = 0
        while self.lock is None:
            number += 1
            self.run = dataclasses.replace(self.run, name=self._numbered(number))
            # Creating a folder is atomic, so of several runs that start together only one gets each number.
            with contextlib.suppress(FileExistsError):
                self.path.mkdir()
                self._created.insert(0, self.path)
                self._lock()

    def _numbered(self, number: int) -> str:
        """Return the default name of this number. The names of two long folders may not fit into one."""
        return fitting_name(self.stem, f"_{number}", self.run.checkpoints_dir)

    def _make_parents(self) -> None:
        missing = []
        parent = self.run.checkpoints_dir
        while not parent.exists():
            missing.append(parent)
            parent = parent.parent
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._created.insert(0, folder)

    def release(self) -> None:
        """Release the lock. Can be called more than once."""
        if self.lock is not None:
            self.lock.release()

    def discard(self) -> None:
        """Undo ``open``, because the run could not start, and release the lock. Never raises OSError.

        What a killed start left is removed too: without the lock's file, it would not be recognised.
        """
        with contextlib.suppress(OSError):
            is_locked = self.lock is not None and self.lock.is_held
            if is_locked and not self.run.continue_train and (self._opened or is_free(self.path)):
                _remove_run(self.path)
                run_files.remove_partials(self.path)
        self.release()
        with contextlib.suppress(OSError):
            for folder in self._created:
                folder.rmdir()
