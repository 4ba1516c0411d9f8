"""Files of weights and of a run's whole state: written so that a crash at any moment leaves the last good file, read without trust.

The official code's names appear in this file alone. Its G_A translates A to B, its D_A judges pictures of B.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import TrainConfig, from_dict, to_dict
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors

OFFICIAL = {"G_AB": "G_A", "G_BA": "G_B", "D_B": "D_A", "D_A": "D_B"}
CONFIG = "config.json"
STATE = "state.pt"


def weights_file(run: Path, epoch: str, name: str, *, ema: bool = False) -> Path:
    """Return the official file of network ``name`` (ours): ``{epoch}_net_{G_A,G_B,D_A,D_B}.pth``; ``ema``: of its running average."""
    return run / f"{epoch}_net_{OFFICIAL[name]}{'_ema' * ema}.pth"


def read_config(run: Path) -> TrainConfig | None:
    """Return the configuration that ``run`` was started with, from config.json or else from its state; None where it has neither."""
    file = run / CONFIG
    if not file.exists():
        state = load_tensors(run / STATE) if (run / STATE).exists() else None
        return from_dict(state["config"]) if isinstance(state, dict) and "config" in state else None
    try:
        return from_dict(json.loads(file.read_text()))
    except (UserError, OSError, ValueError) as error:
        raise UserError(f"{file}: not a configuration of a run: {error}") from None


def write_config(run: Path, config: TrainConfig) -> None:
    """Write ``config`` as config.json. Raises OSError where the disk refuses."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    write_atomically(run / CONFIG, lambda partial: partial.write_text(text))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it over ``path``.

    A failure or a crash at any moment leaves the old file whole. Raises OSError where the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_partials(run: Path) -> None:
    """Delete what a killed process left half written."""
    for partial in run.glob(".*.partial"):
        with contextlib.suppress(OSError):
            partial.unlink()


def to_cpu(value: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor copied to the CPU (so that training can go on)."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_cpu(item) for item in value]
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def fit_weights(net: nn.Module, weights: Mapping[str, Tensor], source: Path | str, architecture: str) -> None:
    """Load ``weights`` into ``net``. Raises UserError that says what was expected and what was found, and loads nothing then."""
    expected = {name: list(value.shape) for name, value in net.state_dict().items()}
    found = {name: list(value.shape) for name, value in weights.items()}
    different = [name for name in expected if name in found and found[name] != expected[name]]
    missing, extra = [n for n in expected if n not in found], [n for n in found if n not in expected]
    problems = [f"{name} is {found[name]} where {expected[name]} is expected" for name in different]
    problems += [f"{name} is missing" for name in missing] + [f"{name} is not expected" for name in extra]
    if problems:
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise UserError(f"{source}: another architecture than {architecture}: {problems[0]}{more}")
    net.load_state_dict(dict(weights))


def save_tensors(path: Path, value: object) -> None:
    """Write nested dicts and lists of tensors, whole or not at all. Raises OSError where the disk refuses."""

    def write(partial: Path) -> None:
        try:
            # Through a Python file: writing by itself, torch.save hides why the disk refused.
            with partial.open("wb") as file:
                torch.save(value, file)
        except RuntimeError as error:
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None

    write_atomically(path, write)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state_dict as the official code does, plain contiguous tensors by name. Raises OSError where the disk refuses."""
    save_tensors(path, {name: value.contiguous() for name, value in weights.items()})


def saved_epochs(run: Path) -> list[str]:
    """Return the labels (latest, 5, iter_1000 ...) for which ``run`` has weights of a generator."""
    labels = {match[1] for file in run.glob("*_net_G*.pth") if (match := re.fullmatch(r"(\w+)_net_G(?:_[AB])?\.pth", file.name))}
    return sorted(labels, key=lambda label: (not label.isdigit(), label.zfill(12) if label.isdigit() else label))


class StateWriter:
    """Writes snapshots in a thread of its own, one at a time, so that training does not wait for the disk.

    A snapshot that holds a weight or optimizer value that is not finite is not written: the last good state stays.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.saved_iteration: int | None = None

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def write(self, state: dict[str, Any], labels: tuple[str, ...], with_state: bool = True) -> None:
        """Start writing ``state`` (a copy on the CPU) as state.pt, and its networks as official files under each of ``labels``.

        Running averages of networks, if it has some, are written beside them.
        """
        self.wait()
        self.thread = threading.Thread(target=self._write, args=(state, labels, with_state), name="state-writer", daemon=True)
        self.thread.start()

    def _write(self, state: dict[str, Any], labels: tuple[str, ...], with_state: bool) -> None:
        iteration = state["iteration"]
        try:
            kept = _tensors([state["nets"], state["optimizers"], state.get("ema")])
            if not all(torch.isfinite(t).all() for t in kept if t.is_floating_point()):
                raise UserError(f"weights are not finite after iteration {iteration}; {self._last_good()}")
            if with_state:
                save_tensors(self.run / STATE, state)
                self.saved_iteration = iteration
            for label in labels:
                for name in OFFICIAL:
                    save_weights(weights_file(self.run, label, name), state["nets"][name])
                for name, average in state.get("ema", {}).items():
                    save_weights(weights_file(self.run, label, name, ema=True), average)
        except UserError as error:
            self.error = error
        except OSError as error:
            self.error = UserError(f"{self.run}: saving failed at iteration {iteration}: {error.strerror or error}; {self._last_good()}")
        # A bug of ours must end the run too, not this thread alone.
        except Exception as error:
            self.error = error

    def _last_good(self) -> str:
        if self.saved_iteration is None:
            return "no state of this run was written before"
        return f"the last good state is of iteration {self.saved_iteration}"

    def check(self) -> None:
        """Raise what made a write fail, once: a UserError where the user can put it right."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait until what was started is on the disk."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None

    def wait(self) -> None:
        """Wait until what was started is on the disk, and raise what went wrong."""
        self.close()
        self.check()
