"""Write a run's state and weights in a background thread, so that training does not wait for the disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints.run_files import PREVIOUS, STATE
from fastcyclegan.checkpoints.weight_sets import is_whole, remove_old_sets, replace_set, write_set
from fastcyclegan.errors import UserError, cannot_write
from fastcyclegan.tensor_files import partial_of, save_tensors, tensors_in
from fastcyclegan.training.run_lock import RunLock


class UnsavableError(UserError):
    """The current state cannot be saved, or must not be. The message says which state is kept."""


def _is_finite(state: dict[str, Any]) -> bool:
    """Return whether every weight and optimizer value of ``state`` is finite."""
    for t in tensors_in([state["nets"], state["optimizers"], state.get("ema")]):
        if t.is_floating_point() and not t.isfinite().all():
            return False
    return True


def keep_previous(run: Path) -> None:
    """Make the current state the previous one as well, in a way that there is a state at every moment."""
    _link(run / STATE, run / PREVIOUS)


def restore_previous(run: Path) -> None:
    """Make the previous state the current one. Raises OSError if that fails."""
    _link(run / PREVIOUS, run / STATE)


def _link(source: Path, target: Path) -> None:
    """Make ``target`` another name of the file ``source``, atomically. Replaces ``target``."""
    partial = partial_of(target)
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # not every file system has links
        if not source.exists():
            raise
        source.replace(target)
        return
    partial.replace(target)
    # Replacing a name by another name of the same file does nothing and leaves both.
    partial.unlink(missing_ok=True)


class StateWriter:
    """Writes snapshots to the folder ``run`` in a background thread, one at a time.

    A snapshot with a weight or optimizer value that is not finite is not written, so the last good state is
    kept. ``names`` maps networks to their official names. ``keep`` is the number of permanent copies of the
    weights to keep; None keeps all. ``lock`` is checked before every write.
    """

    def __init__(
        self, run: Path, names: Mapping[str, str], keep: int | None = None, lock: RunLock | None = None
    ) -> None:
        self.run, self.names, self.keep, self.lock = run, names, keep, lock
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.saved_iteration: int | None = None

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def write(
        self,
        state: dict[str, Any],
        labels: tuple[str, ...],
        with_state: bool = True,
        keep_last: bool = False,
        beside: Mapping[str, str] | None = None,
    ) -> None:
        """Start writing ``state`` (a copy on the CPU) to state.pt, and its networks to official files.

        One set of official files is written for each of ``labels``, with running averages of networks if the
        state contains them. If ``with_state`` is false, state.pt is not written. If ``keep_last`` is true,
        the state that is replaced becomes the previous state. ``beside`` is as in
        ``replace_set``, which then writes the set.
        """
        self.wait()
        self.thread = threading.Thread(
            target=self._write,
            args=(state, labels, with_state, keep_last, beside),
            name="state-writer",
            daemon=True,
        )
        self.thread.start()

    def write_missing(self, state: dict[str, Any], label: str, *, with_state: bool) -> bool:
        """Write the official files of ``state`` unless they are there. Return whether they were written.

        They are missing, or those of another iteration, if a process was killed after it wrote the state, or
        if the run resumes from another state than the last one. In the latter case, the state itself must be
        written too (``with_state``).
        """
        if is_whole(self.run, label, state["iteration"]):
            return False
        self.write(state, (label,), with_state)
        self.wait()
        return True

    def _write(
        self,
        state: dict[str, Any],
        labels: tuple[str, ...],
        with_state: bool,
        keep_last: bool,
        beside: Mapping[str, str] | None,
    ) -> None:
        iteration = state["iteration"]
        try:
            if self.lock is not None:
                self.lock.require()
            if not _is_finite(state):
                raise UnsavableError(
                    f"weights are not finite after iteration {iteration}; {self._last_good()}"
                )
            if with_state:
                self._write_state(state, keep_last)
            for label in labels:
                if beside is None:
                    write_set(self.run, label, state, self.names)
                else:
                    replace_set(self.run, label, state, self.names, beside)
            if self.keep is not None:
                remove_old_sets(self.run, self.keep)
        except UnsavableError as error:
            self.error = error
        except UserError as error:
            self.error = UnsavableError(str(error))
        except OSError as error:
            self.error = self._failed(error, iteration)
        # A bug must end the run too, not only this thread.
        except Exception as error:
            self.error = error

    def _write_state(self, state: dict[str, Any], keep_last: bool) -> None:
        if keep_last and (self.run / STATE).exists():
            keep_previous(self.run)
        save_tensors(self.run / STATE, state)
        self.saved_iteration = state["iteration"]

    def _failed(self, error: OSError, iteration: int) -> UnsavableError:
        file = self.run
        if isinstance(error.filename, (str, os.PathLike)):
            file = Path(error.filename)
        reason = str(cannot_write(file, error))
        return UnsavableError(f"saving failed at iteration {iteration}: {reason}; {self._last_good()}")

    def _last_good(self) -> str:
        if self.saved_iteration is None:
            return "no state of this run was saved before"
        return f"the last good state is from iteration {self.saved_iteration}"

    def check(self) -> None:
        """Raise the error of a failed write, once. It is a UserError if the user can fix it."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait until the current write has ended. If it failed, its error is not raised."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Wait until the current write is on the disk, and raise its error if it failed."""
        self.close()
        self.check()
