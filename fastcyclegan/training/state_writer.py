"""Write a run's state and weights in a background thread, so that training does not wait for the disk."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints.run_files import STATE, save_weights, weights_file
from fastcyclegan.errors import UserError, system_reason
from fastcyclegan.tensor_files import save_tensors, tensors_in


def _is_finite(state: dict[str, Any]) -> bool:
    """Return whether every weight and optimizer value of ``state`` is finite."""
    for t in tensors_in([state["nets"], state["optimizers"], state.get("ema")]):
        if t.is_floating_point() and not t.isfinite().all():
            return False
    return True


class StateWriter:
    """Writes snapshots in a background thread, one at a time.

    A snapshot with a weight or optimizer value that is not finite is not written, so the last good state is
    kept.
    """

    def __init__(self, run: Path, official_names: Mapping[str, str]) -> None:
        self.run, self.names = run, official_names
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.saved_iteration: int | None = None

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def write(self, state: dict[str, Any], labels: tuple[str, ...], with_state: bool = True) -> None:
        """Start writing ``state`` (a copy on the CPU) to state.pt, and its networks to official files.

        One set of official files is written for each of ``labels``. Running averages of networks, if the
        state contains them, are written next to them. If ``with_state`` is false, state.pt is not written.
        """
        self.wait()
        self.thread = threading.Thread(
            target=self._write, args=(state, labels, with_state), name="state-writer", daemon=True
        )
        self.thread.start()

    def _write(self, state: dict[str, Any], labels: tuple[str, ...], with_state: bool) -> None:
        iteration = state["iteration"]
        try:
            if not _is_finite(state):
                raise UserError(f"weights are not finite after iteration {iteration}; {self._last_good()}")
            if with_state:
                save_tensors(self.run / STATE, state)
                self.saved_iteration = iteration
            for label in labels:
                for name, weights in state["nets"].items():
                    save_weights(weights_file(self.run, label, self.names[name]), weights)
                for name, average in state.get("ema", {}).items():
                    save_weights(weights_file(self.run, label, self.names[name], ema=True), average)
        except UserError as error:
            self.error = error
        except OSError as error:
            reason = system_reason(error)
            self.error = UserError(
                f"{self.run}: saving failed at iteration {iteration}: {reason}; {self._last_good()}"
            )
        # A bug must end the run too, not only this thread.
        except Exception as error:
            self.error = error

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
