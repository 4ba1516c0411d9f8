"""Log a run to Weights & Biases, online or offline, as the flag --use_wandb asks.

What goes wrong there after the start is a warning: it never ends a run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fastcyclegan.config import RunConfig
from fastcyclegan.errors import UserError, one_line
from fastcyclegan.files.schema import described
from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.training.event_image import GROWTH, reduced
from fastcyclegan.training.safe_write import naming

ID = "wandb_id.txt"
"""The file in the folder of a run with the id of its wandb run."""
FILES = "wandb"
"""The folder in that of a run in which wandb keeps its own files."""
_SECONDS_TO_FINISH = 120.0


def import_wandb() -> Any:
    """Return the module wandb. Raises UserError if it is not installed or does not work."""
    try:
        import wandb
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] != "wandb":
            raise UserError(f"--use_wandb: wandb cannot be imported: {one_line(error)}") from None
        raise _not_installed() from None
    # Python takes a folder named wandb, such as the one that wandb writes, for a package.
    if not hasattr(wandb, "init"):
        raise _not_installed()
    return wandb


def _not_installed() -> UserError:
    return UserError("--use_wandb: wandb is not installed: pip install '.[wandb]'")


class WandbTracker:
    """A run of wandb, which gets what the tensorboard events get. Its x axis is the iteration.

    A run that is resumed in ``folder`` continues its wandb run. Raises UserError if wandb cannot begin, for
    example without an account.
    """

    def __init__(
        self,
        options: RunConfig,
        config: Mapping[str, Any],
        folder: Path | None,
        log: Callable[[str], object],
    ) -> None:
        self._wandb, self._log = import_wandb(), log
        self._next_image = 0.0
        self._failed = False
        known = None if folder is None else _read_id(folder / ID)
        try:
            self._run = self._begin(options, config, folder, known)
        except Exception as error:
            hint = " (with WANDB_MODE=offline, wandb needs no account and no network)"
            if os.environ.get("WANDB_MODE", "online") != "online":
                hint = ""
            raise UserError(
                f"--use_wandb, --wandb_project_name {options.wandb_project_name}: {one_line(error)}{hint}"
            ) from None
        self._disabled = bool(self._run.disabled)
        if folder is not None and known is None and not self._disabled:
            with naming(folder / ID):
                write_atomically(folder / ID, lambda partial: partial.write_text(f"{self._run.id}\n"))
        if not self._disabled:
            log(f"wandb: {self._sync_command() if self._run.offline else self._run.url}")

    def _begin(
        self, options: RunConfig, config: Mapping[str, Any], folder: Path | None, known: str | None
    ) -> Any:
        wandb = self._wandb
        run = wandb.init(
            project=options.wandb_project_name,
            name=options.name,
            id=known,
            resume="allow",
            dir=folder,
            config=dict(config),
            allow_val_change=True,
            # Standard output is the console's. A lost network must not keep a finished run waiting forever.
            settings=wandb.Settings(
                silent=True,
                console="off",
                finish_timeout=_SECONDS_TO_FINISH,
                finish_timeout_raises=True,
            ),
        )
        # wandb drops values whose step is not above the last one, so the step is its own counter.
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run

    def _sync_command(self) -> str:
        """Return what uploads the values that are only on this machine."""
        return f"wandb sync {Path(self._run.dir).parent} uploads what is logged on this machine only"

    def add_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add one value to the curve of each name in ``scalars``."""
        self._send({"iteration": iteration, **scalars})

    def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
        """Add a reduced copy of ``image``, unless the iteration has not grown by 5 % since the last one."""
        if iteration < self._next_image or self._failed:
            return
        self._next_image = iteration * GROWTH
        self._send({"iteration": iteration, name: reduced(image)})

    def _send(self, values: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            for name, value in values.items():
                if isinstance(value, Image.Image):
                    values[name] = self._wandb.Image(value)
            self._run.log(values)
        except Exception as error:
            self._failed = True
            self._log(
                f"warning: wandb: {one_line(error)}; nothing more is logged to wandb, and training continues"
            )

    def close(self) -> None:
        """Finish the wandb run. What could not be uploaded in two minutes stays on this machine."""
        try:
            self._run.finish()
        except TimeoutError:
            seconds = f"{_SECONDS_TO_FINISH:.0f} seconds"
            self._log(f"warning: wandb: not finished in {seconds}: {self._sync_command()}")
        except Exception as error:
            if not self._failed:
                self._log(f"warning: wandb: {one_line(error)}")


def _read_id(file: Path) -> str | None:
    """Return the id in ``file``, or None if there is no such file. Raises UserError for what is no id."""
    try:
        text = file.read_bytes()[:200].decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file}: {one_line(error)}") from None
    if not re.fullmatch(r"[\w-]{1,64}", text, re.ASCII):
        raise UserError(f"{file}: not the id of a wandb run: {described(text)}; delete it to begin a new one")
    return text
