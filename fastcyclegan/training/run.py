"""A training run: everything that the training loop works with, and the state that it saves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.config import DataConfig, TrainConfig, to_dict
from fastcyclegan.data.choose_loader import Choice
from fastcyclegan.data.loader import Loader, Source, sources_of
from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.data.sample_plan import Plan, View
from fastcyclegan.data.scan import Images, fingerprint
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.engine import Engine
from fastcyclegan.files.schema import MisfitError, Rule, unchecked
from fastcyclegan.files.tensor_rules import like
from fastcyclegan.nn.as_trained import mask_keys
from fastcyclegan.recipes.recipe import Recipe, RecipeError
from fastcyclegan.settings.metrics import NAMED_FEATURES
from fastcyclegan.tensor_files import to_cpu
from fastcyclegan.training.frozen import frozen_networks
from fastcyclegan.training.run_evaluation import RunEvaluation
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
    evaluation: RunEvaluation | None = None
    """What measures the weights, if the run is to be evaluated."""
    carried: Rule | None = None
    """The form that what the recipe carries had at the start, as a rule."""
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

    def require_carried(self) -> None:
        """Raise RecipeError if what the recipe carries could not be loaded, because its form has changed."""
        recipe, carried = self.engine.recipe, self.engine.recipe.state_dict()
        if self.carried is None:
            # A recipe with rules of its own says itself which forms there are.
            has_rules = type(recipe).state_rules is not Recipe.state_rules
            self.carried = unchecked if has_rules else like(carried)
        try:
            self.carried(carried, "state_dict")
        except MisfitError as misfit:
            raise RecipeError(
                f"the recipe {recipe.name}: what it carries could not be loaded again: {misfit} (it must keep"
                " the form that it has at the start, unless the recipe has state_rules)"
            ) from None

    def state(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of everything that the next iteration depends on."""
        self.require_carried()
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
        trained = {"A": self.images.train_A, "B": self.images.train_B}
        return [fingerprint(trained[side]) for side in self.data.sides]

    def images_to_show(self, limit: int) -> list[dict[str, Tensor]]:
        """Return up to ``limit`` rows, each with one image [1, C, H, W] of each domain.

        These are held-out images if there are any, otherwise training images.
        """
        if isinstance(self.loader, TensorLoader):
            first = {side: images[:limit].split(1) for side, images in self.loader.first.items()}
        else:
            assert self.images is not None
            sources = sources_of(self.images, self.data, self.engine.recipe.requirements, held_out=True)
            first = {side: self._centres(source, limit) for side, source in sources.items()}
        return [dict(zip(first, row, strict=True)) for row in zip(*first.values(), strict=False)]

    def keys_to_show(self, limit: int) -> list[Tensor]:
        """Return the key [1] of the dropout masks of each row of ``images_to_show``, from its image of A."""
        names = [str(number) for number in range(limit)]
        if self.images is not None:
            shown = self.images.test_A if self.images.test_A else self.images.train_A
            names = [path.name for path in shown[:limit]]
        return list(mask_keys(self.config.run.seed, names).split(1))

    def _centres(self, source: Source, limit: int) -> tuple[Tensor, ...]:
        """Return the centre crops of the first images of ``source``, [1, C, H, W] on the device."""
        crops = []
        for index in range(min(limit, len(source.paths))):
            pixels = source.view(index, View(0.5, 0.5, False))
            crops.append(to_unit_range(torch.from_numpy(pixels)[None], self.engine.device))
        return tuple(crops)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with absolute paths of what it reads, valid in any working directory."""
    data = config.data
    folders = {name: getattr(data, name) for name in ("dataroot", "data_A", "data_B", "data")}
    changes = {name: folder.absolute() for name, folder in folders.items() if folder is not None}
    finetune = config.finetune
    if finetune.init_from is not None:
        init_from = tuple(file.absolute() for file in finetune.init_from)
        finetune = dataclasses.replace(finetune, init_from=init_from)
    evaluation = config.evaluation
    if evaluation.eval_features not in NAMED_FEATURES:
        features = str(Path(evaluation.eval_features).absolute())
        evaluation = dataclasses.replace(evaluation, eval_features=features)
    for name in ("eval_feature_weights", "eval_lpips_weights"):
        file = getattr(evaluation, name)
        if file is not None:
            evaluation = dataclasses.replace(evaluation, **{name: file.absolute()})
    if finetune.init_from_B is not None:
        finetune = dataclasses.replace(finetune, init_from_B=finetune.init_from_B.absolute())
    data = dataclasses.replace(data, **changes)
    return dataclasses.replace(config, data=data, finetune=finetune, evaluation=evaluation)
