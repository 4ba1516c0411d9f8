"""The settings that a caller gives as keyword arguments, and the configuration that they make."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fastcyclegan.config import TrainConfig, with_changes
from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.recipes.registry import owners
from fastcyclegan.training.exclusive import require_effect, without_replaced

_PATHS = ("dataroot", "data_A", "data_B", "data", "checkpoints_dir")


def group_of(name: str, config: TrainConfig) -> str:
    """Return the name of the group of ``config`` that contains the setting ``name``.

    Raises TypeError for an unknown setting; the message names the recipe that has it, or similar names.
    """
    groups = {}
    for group in dataclasses.fields(config):
        for setting in dataclasses.fields(getattr(config, group.name)):
            groups[setting.name] = group.name
    if name in groups:
        return groups[name]
    message = f"{config.recipe.title} has no setting {name!r}"
    others = owners(name)
    similar = difflib.get_close_matches(name, groups, n=3)
    if others:
        message += f", which belongs to {' and '.join(others)}"
    elif similar:
        message += f"; did you mean {', '.join(similar)}?"
    raise TypeError(message)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return ``config`` with ``settings``, which replace those that they exclude.

    Raises TypeError for an unknown setting, and UserError for an invalid value.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if isinstance(value, str) and name in _PATHS:
            value = Path(value)
        elif name in ("init_from", "init_from_B"):
            value = _paths(name, value)
        elif name in ("freeze", "diffaugment") and isinstance(value, (list, tuple)):
            value = _joined(name, value)
        elif name == "model" and value != config.model.model:
            raise UserError(
                f"{config.recipe.title} trains --model {config.model.model}, not {described(value)}"
            )
        changes.setdefault(group_of(name, config), {})[name] = value
    config = with_changes(without_replaced(config, settings), changes)
    require_effect(config, settings)
    return config


def _paths(name: str, value: Any) -> Any:
    """Return ``value`` of init_from or init_from_B as the configuration has it."""
    files = list(value) if name == "init_from" and isinstance(value, (list, tuple)) else [value]
    for file in files:
        if value is not None and (not is_path(file) or not str(file)):
            kind = "a path or a list of one or two" if name == "init_from" else "a path"
            raise UserError(f"{name} must be {kind}, got {described(file)}")
    if value is None:
        return None
    return tuple(map(Path, files)) if name == "init_from" else Path(value)


def _joined(name: str, values: Sequence[Any]) -> str | None:
    """Return a list of names as the configuration has it, or None if it is empty."""
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{name} must be a list of names, got {described(value)}")
    return ",".join(values) if values else None


def is_path(x: object) -> TypeGuard[str | Path]:
    """Return whether ``x`` names a file or a folder."""
    return isinstance(x, (str, Path))


def images_given(A: Any, B: Any, config: TrainConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that select the folders passed to ``fit``, or {} if no folders were passed.

    ``settings`` are the others that were passed.

    Raises TypeError for a domain that is neither a folder nor a loader, and UserError if one is a folder and
    the other a loader, or if there are two for a recipe that trains on single images.
    """
    for x in (A, B):
        if x is not None and not isinstance(x, (str, Path, Iterable)):
            raise TypeError(f"fit: a domain must be a folder or a loader, got {type(x).__name__}")
    differ = A is not None and B is not None and is_path(A) != is_path(B)
    if differ or (A is None and B is not None):
        raise UserError("fit: A and B must both be folders or both be loaders")
    layouts = config.recipe.layouts
    if B is not None and layouts == ("single",):
        raise UserError(
            f"fit: {config.recipe.title} trains on single images, so it takes one folder or loader"
        )
    if not is_path(A):
        return {}
    folder = Path(A)
    none = {"dataroot": None, "data_A": None, "data_B": None, "data": None}
    if B is not None:
        return {**none, "data_A": folder, "data_B": Path(B)}
    is_dataset = any((folder / name).is_dir() for name in ("train", "trainA", "trainB"))
    may_be_single = "single" in layouts and settings.get("dataset_mode", "single") == "single"
    if may_be_single and not is_dataset:
        return {**none, "data": folder}
    return {**none, "dataroot": folder}


def loaders_given(A: Any, B: Any, config: TrainConfig) -> tuple[Any, Any] | None:
    """Return the loaders passed to ``fit``, or None if it takes the images that ``config`` names.

    Raises UserError if there are neither, and for a direction, which does not swap loaders.
    """
    if A is not None and not is_path(A):
        if config.data.direction == "BtoA":
            raise UserError(
                "fit: --direction BtoA swaps folders, but not loaders: pass them in the order that you want"
            )
        return A, B
    if config.data.is_builtin:
        raise UserError("fit: no images given: pass a dataset folder, one folder per domain, or loaders")
    return None
