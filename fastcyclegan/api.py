"""CycleGAN as an object: made, fitted, used, saved and loaded from Python. Nothing is printed, written or set
elsewhere unless asked for.

The command line is a shell over it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.loading import choose, read_networks, settings_of
from fastcyclegan.checkpoints.run_files import (
    read_config,
    save_weights,
    saved_epochs,
    weights_file,
    write_config,
)
from fastcyclegan.config import Direction, TrainConfig, with_changes
from fastcyclegan.console import Console, QuietConsole
from fastcyclegan.engine import resolve_device, resolve_precision
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translator import ImageLike, translate_images
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.tensor_files import save_tensors, to_cpu
from fastcyclegan.training.resume import read_state
from fastcyclegan.training.run import with_absolute_paths
from fastcyclegan.training.start import Overrides, networks_that_fit
from fastcyclegan.training.trainer import Trainer, train

Record = dict[str, Any]
Callback = Callable[["CycleGAN", Record], object]
_INITIALISING = threading.Lock()
# What belongs to one start of a run and not to its configuration.
_ONE_START = {"continue_train": False, "overwrite": False, "dry_run": False, "epoch": "latest"}


def _group_of(name: str) -> str:
    """Return the group of the configuration that has the setting ``name``. Raises TypeError, with the nearest
    names, for an unknown one.
    """
    defaults = TrainConfig()
    groups = {}
    for group in dataclasses.fields(defaults):
        for setting in dataclasses.fields(getattr(defaults, group.name)):
            groups[setting.name] = group.name
    if name not in groups:
        message = f"CycleGAN has no setting {name!r}"
        near = difflib.get_close_matches(name, groups, n=3)
        if near:
            message += f"; did you mean {', '.join(near)}?"
        raise TypeError(message)
    return groups[name]


def _changed(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    changes: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if isinstance(value, str) and name in ("dataroot", "data_A", "data_B", "checkpoints_dir"):
            value = Path(value)
        changes.setdefault(_group_of(name), {})[name] = value
    return with_changes(config, changes)


def _is_path(x: object) -> TypeGuard[str | Path]:
    return isinstance(x, (str, Path))


@contextlib.contextmanager
def _kept_globals() -> Iterator[None]:
    """Put back the settings of the process that training changes: torch's random state, and cuDNN's benchmark
    switch.
    """
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


def _data_settings(A: Any, B: Any) -> dict[str, Any]:
    """Return what ``fit``'s domains change of the configuration: something where they are folders. Raises
    TypeError for what is neither a folder nor a loader, and UserError for one of each.
    """
    for x in (A, B):
        if x is not None and not isinstance(x, (str, Path, Iterable)):
            raise TypeError(f"fit: a domain is a folder or a loader, got {type(x).__name__}")
    differ = A is not None and B is not None and _is_path(A) != _is_path(B)
    if differ or (A is None and B is not None):
        raise UserError("fit: A and B must both be folders or both be loaders")
    if not _is_path(A):
        return {}
    if B is None:
        return {"dataroot": Path(A), "data_A": None, "data_B": None}
    return {"dataroot": None, "data_A": Path(A), "data_B": Path(B)}


class CycleGAN:
    """Four networks, and how they are trained and used.

    ``settings`` are the flags of ``scripts/train.py`` by name (``netG="resnet_6blocks"``,
    ``lambda_identity=0``, ``batch_size=4``, ``compile=True`` ...), changes of ``config`` or of the defaults.
    The networks are initialised by ``seed`` alone. Raises TypeError for an unknown setting and UserError,
    with one clear line, for a value that does not fit.
    """

    def __init__(self, config: TrainConfig | None = None, **settings: Any) -> None:
        self.config = _changed(TrainConfig() if config is None else config, settings)
        self.folder: Path | None = None
        """Where the last ``fit``, ``save`` or ``load`` has its files."""
        self.history: list[Record] = []
        """What callbacks heard, of all calls of ``fit``."""
        self._nets: dict[str, nn.Module] | None = None
        self._state: dict[str, Any] | None = None
        self._trainer: Trainer | None = None

    # --- The networks ---------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, nn.Module]:
        """G_AB and G_BA (of the model's A to B and back), D_A and D_B."""
        if self._nets is None:
            # One at a time: torch has one generator of random numbers for all threads.
            with _INITIALISING, _kept_globals():
                torch.manual_seed(self.config.run.seed)
                self._nets = networks_that_fit(self.config)
        return self._nets

    @property
    def G_AB(self) -> nn.Module:
        return self.networks["G_AB"]

    @property
    def G_BA(self) -> nn.Module:
        return self.networks["G_BA"]

    @property
    def D_A(self) -> nn.Module:
        return self.networks["D_A"]

    @property
    def D_B(self) -> nn.Module:
        return self.networks["D_B"]

    @property
    def device(self) -> torch.device:
        return resolve_device(self.config.run)

    @property
    def iteration(self) -> int:
        """Iterations done."""
        if self._trainer is not None:
            return self._trainer.run.iteration
        return 0 if self._state is None else int(self._state["iteration"])

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"CycleGAN(netG={model.netG}, ngf={model.ngf}, netD={model.netD}, ndf={model.ndf},"
            f" iteration={self.iteration})"
        )

    # --- Training -------------------------------------------------------------------------------------------

    def fit(
        self,
        A: str | Path | Iterable[Any] | None = None,
        B: str | Path | Iterable[Any] | None = None,
        *,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        verbose: bool = False,
        iterations_per_epoch: int | None = None,
        **settings: Any,
    ) -> list[Record]:
        """Train, and return what was logged: a record a tick (a second, or ``print_freq`` images) with
        iteration, losses, lr, speed.

        ``A``: a dataset's folder (trainA, trainB), or with ``B`` a folder of images each; or a loader of
        both domains, which gives {"A": ..., "B": ...} or pairs of tensors; or with ``B`` a loader each.
        Loaders give float tensors [N, C, H, W] in [-1, 1], or uint8, cropped and mirrored as the caller
        likes; ``iterations_per_epoch`` is needed where they have no length. Without both, the images of the
        configuration.

        ``folder``: keep the run's files there, as the command line does; else nothing is written.
        ``callbacks`` are called with the model and each record; ``stop()`` ends training after the iteration.
        ``settings`` as for the class, for this and later calls. Called again it goes on to the epochs and
        iterations that the settings then say: exactly, but that a loader of the caller's begins anew, which
        is exact between epochs alone. Ctrl-C is a KeyboardInterrupt after the iteration. Raises UserError for
        what cannot be trained on, and TypeError for what is neither a folder nor a loader.
        """
        config = self._config_for(A, B, folder, settings)
        loaders: Any = None
        if A is not None and not _is_path(A):
            loaders = (A, B)
        if loaders is None and config.data.is_builtin:
            raise UserError("fit: no images: give a dataset's folder, a folder a domain, or loaders")
        records: list[Record] = []

        def begin(trainer: Trainer) -> None:
            # From here on it is this run that goes on, however it ends.
            self._trainer, self.config, self._state = trainer, config, None
            if trainer.run.folder is not None:
                self.folder = trainer.run.folder

        def tick(trainer: Trainer, record: Record) -> None:
            records.append(record)
            self.history.append(record)
            for callback in callbacks:
                callback(self, record)

        overrides = Overrides(
            self.networks, loaders, iterations_per_epoch, self._last_state(), files=folder is not None
        )
        console = Console() if verbose else QuietConsole()
        with _kept_globals():
            train(config, console, overrides=overrides, on_start=begin, on_tick=tick, signals=False)
        return records

    def _config_for(
        self, A: Any, B: Any, folder: str | Path | None, settings: Mapping[str, Any]
    ) -> TrainConfig:
        """Return the configuration of one ``fit``."""
        for name in settings:
            if _group_of(name) == "model" and name != "impl":
                raise UserError(
                    f"fit: the networks are made, so {name} cannot change: give it to CycleGAN(...)"
                )
        config = _changed(self.config, {**settings, **_ONE_START})
        config = with_changes(config, {"data": _data_settings(A, B)})
        if folder is not None:
            folder = Path(folder)
            again = self.folder is not None and self.folder.resolve() == folder.resolve()
            start = {"name": folder.name, "checkpoints_dir": folder.parent, "continue_train": again}
            config = with_changes(config, {"run": start})
        return config

    def stop(self) -> None:
        """End ``fit`` after the iteration that is running; for callbacks."""
        if self._trainer is not None:
            self._trainer.stop_after(0)

    def train(self, console: Console) -> Trainer:
        """Train as the configuration says, with all that a run keeps and prints, and return its trainer: what
        ``scripts/train.py`` does.
        """
        self._trainer = train(self.config, console)
        self._nets, self.folder = self._trainer.run.engine.nets, self._trainer.run.folder
        return self._trainer

    def _last_state(self) -> dict[str, Any] | None:
        if self._trainer is not None:
            return self._trainer.state()
        return self._state

    # --- Using ----------------------------------------------------------------------------------------------

    def translate(
        self, images: ImageLike | Sequence[ImageLike], direction: Direction = "AtoB", batch_size: int = 8
    ) -> Any:
        """Return the translation of an image, or of a list of them, as what it was given as.

        An image is a PIL image (any mode), an array of uint8 [H, W, C] (or [H, W] where C is 1), a float
        tensor [C, H, W] or [N, C, H, W] in [-1, 1], or a path (which gives a PIL image). Any size, which it
        keeps. ``direction`` speaks of the training folders. Raises UserError for an image that cannot be
        read, ValueError for a wrong shape, dtype or range, and TypeError for what is no image.
        """
        if direction not in ("AtoB", "BtoA"):
            raise UserError(f"direction must be AtoB or BtoA, got {direction!r}")
        target = "B" if direction == self.config.data.direction else "A"
        net, device = self.networks[make_recipe(self.config).generator(target)], self.device
        precision = resolve_precision(self.config.run.precision, device, compiled=False)
        training = net.training
        try:
            return translate_images(net.eval(), images, device, precision, batch_size)
        finally:
            net.train(training)

    # --- Keeping --------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the networks by their official names, the configuration, and, once trained, the state that
        training goes on from.

        The folder is one that ``load``, ``scripts/translate.py --weights`` and ``scripts/train.py
        --continue_train`` take. Raises UserError where it has files already, but for ``overwrite`` and the
        model's own folder, and OSError where the disk refuses.
        """
        folder = Path(folder)
        own = self.folder is not None and self.folder.resolve() == folder.resolve()
        if folder.exists() and not (overwrite or own) and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists: choose another, or overwrite=True")
        folder.mkdir(parents=True, exist_ok=True)
        state = self._last_state()
        names = make_recipe(self.config).official_names
        for name, net in self.networks.items():
            save_weights(weights_file(folder, "latest", names[name]), to_cpu(net.state_dict()))
        averages = {} if state is None else state.get("ema", {})
        for name, average in averages.items():
            save_weights(weights_file(folder, "latest", names[name], ema=True), average)
        run = {**_ONE_START, "name": folder.resolve().name, "checkpoints_dir": folder.resolve().parent}
        config = with_absolute_paths(with_changes(self.config, {"run": run}))
        write_config(folder, config)
        if state is not None:
            save_tensors(folder / run_files.STATE, state)
        else:
            (folder / run_files.STATE).unlink(missing_ok=True)
        self.folder = folder

    @classmethod
    def load(cls, folder: str | Path, epoch: str = "latest", **settings: Any) -> CycleGAN:
        """Return the model of a run's folder, of ``save``, or of official ``*_net_*.pth`` files, whose
        networks are read off them.

        With the folder's state ``fit`` goes on exactly; of another ``epoch`` than latest, and of files alone,
        with fresh optimizers. Raises UserError for what is missing, damaged or does not fit.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder; load_generator loads a generator by itself")
        config = read_config(folder)
        if config is None and not saved_epochs(folder):
            raise UserError(f"{folder}: neither a run nor *_net_*.pth files")
        if config is None:
            config = with_changes(TrainConfig(), {"model": settings_of(folder, epoch)})
        model = cls(with_changes(config, {"run": _ONE_START}), **settings)
        model.folder = folder
        recipe = make_recipe(model.config)
        architecture = f"{config.model.netG} and {config.model.netD} of {folder}"
        state_file = folder / run_files.STATE
        if epoch == "latest" and state_file.exists():
            model._state = read_state(state_file, recipe)
        for name, net in model.networks.items():
            if model._state is not None:
                source, weights = state_file, model._state["nets"][name]
            else:
                source = weights_file(folder, epoch, recipe.official_names[name])
                networks = read_networks(source)
                weights = choose(networks, source, generator=name in recipe.generators).weights
            run_files.fit_weights(net, weights, f"{source} ({name})", architecture)
        return model
