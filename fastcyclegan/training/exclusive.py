"""Let the settings that are given now replace saved ones that exclude them, and require that they matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastcyclegan.config import Layout, TrainConfig, with_changes
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.recipe import Recipe

# Each setting of all runs, and those that cannot, or need not, stay beside it.
_REPLACES = {
    "dataroot": ("data_A", "data_B", "data", "holdout"),
    "data_A": ("dataroot", "data"),
    "data_B": ("dataroot", "data"),
    "data": ("dataroot", "data_A", "data_B", "direction"),
    "device": ("gpu_ids",),
    "gpu_ids": ("device",),
    "eval_every": ("eval_share",),
    "eval_share": ("eval_every",),
}


def _replaced_by(name: str, given: Mapping[str, Any], recipe: type[Recipe]) -> tuple[str, ...]:
    """Return the settings of a run of ``recipe`` that the setting ``name`` replaces."""

    def excluded(name: str) -> tuple[str, ...]:
        value = given[name]
        own = (*recipe.Model.excluded_by(name, value), *recipe.Loss.excluded_by(name, value))
        return (*_REPLACES.get(name, ()), *own)

    others = excluded(name)
    # If both are given, they contradict each other, and the check of the whole configuration says so.
    if any(name in excluded(other) for other in others if other in given):
        return ()
    return tuple(other for other in others if other not in given)


def require_effect(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Raise UserError if a setting in ``given`` has no effect with ``config``; a saved one may have none."""
    if given.get("wandb_project_name") is not None and not config.run.use_wandb:
        raise UserError("--wandb_project_name needs --use_wandb")
    options = config.evaluation
    for setting in dataclasses.fields(options):
        name = setting.name
        if not options.asks and not _is_none(given.get(name)):
            raise UserError(f"--{name} needs --eval_every or --eval_metric")
    if options.eval_every is not None and not _is_none(given.get("eval_share")):
        raise UserError("--eval_share has no effect with --eval_every, which says how often")


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == "None")


def without_replaced(saved: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """Return ``saved`` with the defaults of all settings that those in ``given`` exclude.

    ``given`` contains values by name, which may be the texts of a command line. They are not put into the
    result. Settings that are given themselves stay as they are. A None, also as the command line writes it,
    counts as not given.
    """
    given = {name: value for name, value in given.items() if not _is_none(value)}
    replaced = {other for name in given for other in _replaced_by(name, given, saved.recipe)}
    changes: dict[str, dict[str, Any]] = {}
    for group in dataclasses.fields(saved):
        for setting in dataclasses.fields(getattr(saved, group.name)):
            if setting.name in replaced:
                changes.setdefault(group.name, {})[setting.name] = setting.default
    layout = _layout(saved, given)
    if layout != saved.data.dataset_mode:
        changes.setdefault("data", {})["dataset_mode"] = layout
    return with_changes(saved, changes)


def _layout(saved: TrainConfig, given: Mapping[str, Any]) -> Layout:
    """Return the layout of the images that the folders in ``given`` imply, if it is not given itself."""
    layouts = saved.recipe.layouts
    if "dataset_mode" in given:
        return saved.data.dataset_mode
    if "data" in given and "single" in layouts:
        return "single"
    is_single = saved.data.dataset_mode == "single"
    if is_single and "data_A" in given:
        return next((layout for layout in layouts if layout != "single"), "single")
    return saved.data.dataset_mode
