"""A training run: everything that the training loop works with, and the state that it saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.config import DataConfig, TrainConfig, to_dict
from fastcyclegan.data.choose_loader import Choice
from fastcyclegan.data.fit import Fit, load_pixels, take_view
from fastcyclegan.data.loader import Loader
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.data.sample_plan import Plan, View
from fastcyclegan.data.scan import Images, fingerprint
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.engine import Engine
from fastcyclegan.tensor_files import to_cpu
from fastcyclegan.training.frozen import frozen_networks
from fastcyclegan.training.run_lock import RunLock
from fastcyclegan.training.tracker import Trackers

STATE_VERSION = 1
TENSORS = "the caller"
"""The value of ``Run.reader`` if the caller provides tensors."""


@dataclass
class Run:
    """Everything that the training loop works with."""

    config: TrainConfig
    folder: Path | None
    """Folder for the files of the run; None writes no files."""
    lock: RunLock | None
    """The lock of the folder, if there is one."""
    images: Images | None
    """None if the caller provides tensors."""
    data: DataConfig
    plan: Plan
    loader: Loader | TensorLoader
    choice: Choice | None
    engine: Engine
    first: int
    """Iteration (from 0, counted from epoch 1) at which the run first started, as set by epoch_count."""
    iteration: int
    """Completed iterations, counted from epoch 1."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The training loop's own part of the state; {} when a run first starts."""
    resumed_from_file: bool = False
    """Whether the run continues from the state that is in its folder."""
    table: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Where the initial weights of each network come from, if any are those of a file."""
    trackers: Trackers = field(default_factory=Trackers)
    random_state: dict[str, Tensor | None] | None = None
    """The state of the random generators at the end of the run; None before. Others may use them later."""

    @property
    def batch(self) -> int:
        """Samples in a full batch: fewer than requested if there are fewer images."""
        return min(self.plan.batch_size, len(self.plan))

    @property
    def last(self) -> int:
        """Iteration after which training is complete."""
        stop = self.config.optim.last_epoch * self.plan.iterations_per_epoch
        limit = self.config.optim.max_iters
        if limit is None:
            return stop
        return min(stop, self.first + limit)

    @property
    def in_warmup(self) -> bool:
        """Whether only the discriminators train in the next iteration."""
        return self.iteration - self.first < self.config.finetune.warmup_D

    def freeze(self) -> None:
        """Freeze the networks that do not train in the next iteration, and no others."""
        completed = self.iteration - self.first
        self.engine.frozen.set(frozen_networks(self.config, self.engine.recipe, completed))

    def unfreeze(self) -> None:
        """Leave the networks as they were before ``freeze``."""
        self.engine.frozen.set(())

    @property
    def reader(self) -> str:
        """Name of the loader that reads the images."""
        if self.choice is None:
            return TENSORS
        return self.choice.kind

    def release(self) -> None:
        """Let other processes use the run's folder. Can be called more than once."""
        if self.lock is not None:
            self.lock.release()

    def state(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of everything that the next iteration depends on."""
        progress = {
            "version": STATE_VERSION,
            "iteration": self.iteration,
            "first": self.first,
            "pictures": self.fingerprints(),
            "loader": self.reader,
            "config": to_dict(with_absolute_paths(self.config)),
        }
        state = {**progress, "extra": extra, **to_cpu(self.engine.state_dict())}
        if self.random_state is not None:
            state["rng"] = self.random_state
        return state

    def end(self) -> None:
        """Let others use the run's folder and the random generators. ``state`` stays what it is now."""
        self.release()
        self.random_state = self.engine.random_state()
        self.unfreeze()

    def fingerprints(self) -> list[str] | None:
        """Return fingerprints that identify the training images."""
        if self.images is None:
            return None
        return [fingerprint(self.images.train_A), fingerprint(self.images.train_B)]

    def images_to_show(self, limit: int) -> list[tuple[Tensor, Tensor]]:
        """Return up to ``limit`` pairs of images [1, C, H, W], one of domain A and one of domain B.

        These are held-out images if there are any, otherwise training images.
        """
        if isinstance(self.loader, TensorLoader):
            first_A, first_B = self.loader.first
            return list(zip(first_A[:limit].split(1), first_B[:limit].split(1), strict=True))
        assert self.images is not None
        paths_A = _held_out(self.images.test_A, self.images.train_A)[:limit]
        paths_B = _held_out(self.images.test_B, self.images.train_B)[:limit]
        model, pairs = self.config.model, []
        for path_A, path_B in zip(paths_A, paths_B, strict=False):
            pairs.append((self._image(path_A, model.input_nc), self._image(path_B, model.output_nc)))
        return pairs

    def _image(self, path: Path, channels: int) -> Tensor:
        """Return the centre crop of the image at ``path`` as a tensor [1, channels, H, W] on the device."""
        fit = Fit.of(self.data, channels, self.config.model.size_multiple)
        pixels = take_view(load_pixels(path, fit), fit, View(0.5, 0.5, False))
        return to_unit_range(torch.from_numpy(pixels.copy())[None], self.engine.device)


def _held_out(test: Sequence[Path], train: Sequence[Path]) -> Sequence[Path]:
    """Return ``test``, or ``train`` if no images were held out."""
    if test:
        return test
    return train


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with absolute paths of what it reads, valid in any working directory."""
    data = config.data
    folders = {name: getattr(data, name) for name in ("dataroot", "data_A", "data_B")}
    changes = {name: folder.absolute() for name, folder in folders.items() if folder is not None}
    finetune = config.finetune
    if finetune.init_from is not None:
        init_from = tuple(file.absolute() for file in finetune.init_from)
        finetune = dataclasses.replace(finetune, init_from=init_from)
    if finetune.init_from_B is not None:
        finetune = dataclasses.replace(finetune, init_from_B=finetune.init_from_B.absolute())
    return dataclasses.replace(config, data=dataclasses.replace(data, **changes), finetune=finetune)
