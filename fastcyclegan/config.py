"""The configuration of a training run: groups of settings, of which a recipe provides two.

Each default is written once: those of all runs in ``settings``, and those of a recipe beside it. A setting
that the official code also has is named after the official flag. The comment above a field is its help text
on the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described, joined
from fastcyclegan.recipes.cyclegan import LossConfig
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.recipes.registry import recipe_class
from fastcyclegan.settings.checks import is_folder_name
from fastcyclegan.settings.data import FIXED_SIZE, DataConfig, Direction, Layout, Preprocess
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.evaluation import EvaluationConfig
from fastcyclegan.settings.finetune import FinetuneConfig
from fastcyclegan.settings.networks import ModelConfig
from fastcyclegan.settings.optim import OptimConfig
from fastcyclegan.settings.recipe import LossSettings, ModelSettings
from fastcyclegan.settings.run import RunConfig

__all__ = [
    "FIXED_SIZE",
    "DataConfig",
    "Direction",
    "EngineConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "Layout",
    "LossConfig",
    "LossSettings",
    "ModelConfig",
    "ModelSettings",
    "OptimConfig",
    "Preprocess",
    "RunConfig",
    "TrainConfig",
    "config_class",
    "default_config",
    "from_dict",
    "is_folder_name",
    "to_dict",
    "with_changes",
]


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration of a training run. Raises UserError if its parts contradict each other.

    ``model`` and ``loss`` are the settings of the recipe that ``model.model`` names.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSettings = field(default_factory=ModelConfig)
    loss: LossSettings = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        recipe = self.recipe
        for group, kind in (("model", recipe.Model), ("loss", recipe.Loss)):
            found = type(getattr(self, group))
            if found is not kind:
                raise UserError(
                    f"{group}: --model {recipe.name} has the settings {kind.__name__}, got {found.__name__}"
                )
        recipe.require_layout(self.data)
        recipe.check_settings(self.data, self.model, self.loss)
        limit, warmup = self.optim.max_iters, self.finetune.warmup_D
        if limit is not None and warmup > limit:
            raise UserError(f"warmup_D {warmup} is longer than the run, which has max_iters {limit}")

    @property
    def recipe(self) -> type[Recipe]:
        """The class of the recipe to train. Raises UserError if there is none of that name."""
        return recipe_class(self.model.model)

    def make_recipe(self) -> Recipe:
        """Return a new recipe for this configuration, in the state before its first iteration."""
        return self.recipe(self.loss, self.model)

    def scaled_lr(self, batch: int) -> float:
        """Return the initial learning rate for batches of ``batch`` images, scaled by ``lr_scaling``."""
        scale = 1.0
        if self.optim.lr_scaling == "sqrt":
            scale = math.sqrt(batch)
        return self.optim.lr * scale


def default_config(model: str = "cycle_gan") -> TrainConfig:
    """Return the configuration of a run of the recipe ``model`` with its defaults.

    Raises UserError if there is no such recipe.
    """
    recipe = recipe_class(model)
    data = DataConfig(dataset_mode=recipe.layouts[0])
    config = TrainConfig(data, recipe.Model(model=model), recipe.Loss())
    try:
        return with_changes(config, recipe.defaults)
    except UserError as error:
        raise UserError(f"the defaults of the recipe {model}: {error}") from None


def config_class(model: str) -> type[TrainConfig]:
    """Return a TrainConfig with the flags of the recipe ``model``, for a parser of command lines."""
    recipe = recipe_class(model)
    named = functools.partial(recipe.Model, model=model)
    data = functools.partial(DataConfig, dataset_mode=recipe.layouts[0])
    groups: list[tuple[str, type, Callable[[], Any]]] = [
        ("data", DataConfig, data),
        ("model", recipe.Model, named),
        ("loss", recipe.Loss, recipe.Loss),
    ]
    fields = [(name, kind, field(default_factory=make)) for name, kind, make in groups]
    made: type[TrainConfig] = dataclasses.make_dataclass(
        "TrainConfig", fields, bases=(TrainConfig,), frozen=True, namespace={"__module__": __name__}
    )
    return made


def with_changes(config: TrainConfig, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return a copy of ``config`` with ``changes`` applied, a dict of new values by group and field."""
    groups = {}
    for group, fields in changes.items():
        groups[group] = dataclasses.replace(getattr(config, group), **fields)
    return dataclasses.replace(config, **groups)


def to_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return ``config`` as nested dicts of plain JSON values, by group."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


# The groups that are missing from configurations saved by older versions.
LATER = ("engine", "finetune", "evaluation")


def from_dict(saved: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Rebuild a configuration from ``saved``, the output of ``to_dict``. Missing fields get their defaults.

    Raises UserError, which names the group or the setting, if ``saved`` is not such a configuration, has
    unknown groups or settings, or is that of an unknown recipe.
    """
    fields = dataclasses.fields(TrainConfig)
    names = [group.name for group in fields if group.name not in LATER]
    if not isinstance(saved, Mapping) or not all(name in saved for name in names):
        raise UserError(f"it lacks at least one of the groups {', '.join(names)}")
    _require_known("groups", saved, {group.name for group in fields})
    defaults = default_config(_model_of(saved["model"]))
    groups: dict[str, Any] = {}
    for group in fields:
        groups[group.name] = _group_from(group.name, saved.get(group.name, {}), getattr(defaults, group.name))
    return TrainConfig(**groups)


def _model_of(saved: Any) -> str:
    """Return the name of the recipe in the group of model settings ``saved``."""
    name = saved.get("model", ModelSettings.model) if isinstance(saved, Mapping) else ModelSettings.model
    if not isinstance(name, str):
        raise UserError(f"model must be str, got {described(name)}")
    return name


def _require_known(kind: str, found: Mapping[Any, Any], known: Collection[str]) -> None:
    unknown = [joined("", name) for name in found if name not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        listed = ", ".join(sorted(unknown)[:5])
        raise UserError(f"it has {kind} that are unknown to this version: {listed}{more}")


def _group_from(name: str, saved: Any, defaults: Any) -> Any:
    """Rebuild the group ``name`` of a configuration from ``saved``, its part of the output of ``to_dict``."""
    if not isinstance(saved, Mapping):
        raise UserError(f"{name} must be a group of settings, got {described(saved)}")
    hints = get_type_hints(type(defaults))
    _require_known("settings", saved, hints)
    values = dict(saved)
    for setting, value in values.items():
        kinds = (hints[setting], *get_args(hints[setting]))
        if isinstance(value, str) and Path in kinds:
            values[setting] = _path(setting, value)
        elif isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
            is_of_paths = tuple[Path, ...] in kinds
            values[setting] = tuple(_path(setting, item) if is_of_paths else item for item in value)
    return dataclasses.replace(defaults, **values)


def _path(setting: str, value: Any) -> Any:
    """Return the path that ``value`` of ``setting`` names, or a ``value`` that is no text as it is."""
    if value == "":  # Path would take it for the working folder
        raise UserError(f"{setting} must be a path, got ''")
    return Path(value) if isinstance(value, str) else value
