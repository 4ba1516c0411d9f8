"""Find recipes by their names: those of this package, those of plug-ins, and those that a program registers.

A plug-in is an installed package with entry points in the group ``fastcyclegan.recipes``. It is imported only
when its recipe is needed, so one that is broken does not affect the others.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, TypeVar, get_args

from fastcyclegan.errors import UserError, one_line
from fastcyclegan.files.schema import described
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.settings.data import DataConfig, Direction, Layout
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.evaluation import EvaluationConfig
from fastcyclegan.settings.finetune import FinetuneConfig
from fastcyclegan.settings.optim import OptimConfig
from fastcyclegan.settings.recipe import LossSettings, ModelSettings
from fastcyclegan.settings.run import RunConfig

GROUP = "fastcyclegan.recipes"
"""The group of the entry points of plug-ins: NAME = "package.module:Class"."""
OF_ALL: Mapping[str, type] = {
    "data": DataConfig,
    "optim": OptimConfig,
    "run": RunConfig,
    "engine": EngineConfig,
    "finetune": FinetuneConfig,
    "evaluation": EvaluationConfig,
}
"""The groups of settings that all recipes have."""
BUILT_IN: tuple[type[Recipe], ...] = (CycleGANRecipe, Pix2PixRecipe)

R = TypeVar("R", bound=type[Recipe])
_registered: list[type[Recipe]] = []
_checked: set[type[Recipe]] = set()


def register_recipe(recipe: R) -> R:
    """Make ``recipe`` available in this process, under its name. Can be used as a decorator.

    Raises UserError if it is not a recipe that can be trained, or if there is another one of that name.
    """
    _require_valid(recipe)
    if recipe not in _registered:
        _registered.append(recipe)
    try:
        recipe_class(recipe.name)
    except UserError:
        _registered.remove(recipe)
        raise
    return recipe


def names() -> list[str]:
    """Return the names of all recipes, those of this package first."""
    found = [source.name for source in _sources()]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Source:
    """Where a recipe comes from: this package, the program, or a plug-in's entry point."""

    name: str
    place: str
    recipe: type[Recipe] | None = None
    entry: EntryPoint | None = None

    def load(self) -> type[Recipe]:
        """Return the class. Raises UserError if a plug-in cannot be imported or has no such recipe."""
        if self.recipe is not None:
            return self.recipe
        assert self.entry is not None
        try:
            found = self.entry.load()
        # A plug-in can fail in any way, and must not end the program without a reason.
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
            raise UserError(f"the recipe {self.name} of {self.place} cannot be imported: {reason}") from None
        _require_valid(found, self.place)
        if found.name != self.name:
            raise UserError(
                f"the recipe {self.name} of {self.place} is called {found.name!r} in its class: the entry"
                " point and the class must have the same name"
            )
        recipe: type[Recipe] = found
        return recipe


def _sources() -> Iterator[_Source]:
    for recipe in BUILT_IN:
        yield _Source(recipe.name, "fastcyclegan itself", recipe)
    for recipe in _registered:
        yield _Source(recipe.name, f"{recipe.__module__}.{recipe.__qualname__}", recipe)
    for entry in _entry_points(tuple(map(_folder, sys.path))):
        package = "unknown" if entry.dist is None else entry.dist.name
        yield _Source(entry.name, f"the package {package} ({entry.value})", entry=entry)


def _folder(path: str) -> tuple[str, int]:
    """Return ``path`` and when a package was last installed there or removed."""
    try:
        return path, Path(path).stat().st_mtime_ns
    except OSError:
        return path, 0


@functools.lru_cache(maxsize=2)
def _entry_points(folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of plug-ins, which are looked for again only if ``folders`` change."""
    return tuple(importlib.metadata.entry_points(group=GROUP))


def recipe_class(name: str) -> type[Recipe]:
    """Return the recipe ``name``.

    Raises UserError if there is none or several of that name, and if it cannot be imported or is no recipe.
    """
    if not isinstance(name, str):
        raise UserError(f"the name of a recipe must be text, got {described(name)}")
    sources = [source for source in _sources() if source.name == name]
    if not sources:
        known = names()
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f"the recipes are {', '.join(known)}, and no installed package adds this one"
        if similar:
            hint = f"did you mean {similar[0]}?"
        raise UserError(f"--model: there is no recipe {described(name)}; {hint}")
    found = {source.load(): source.place for source in reversed(sources)}
    if len(found) > 1:
        places = " and ".join(sorted(found.values()))
        raise UserError(
            f"--model {name}: there are several recipes of that name: {places}; rename one of them"
        )
    (recipe,) = found
    return recipe


def flags_of(recipe: type[Recipe]) -> dict[str, str]:
    """Return the names of the settings that ``recipe`` adds, with their groups."""
    flags: dict[str, str] = {}
    for group, kind, base in (
        ("model", recipe.Model, ModelSettings),
        ("loss", recipe.Loss, LossSettings),
    ):
        shared = {field.name for field in dataclasses.fields(base)}
        flags |= {field.name: group for field in dataclasses.fields(kind) if field.name not in shared}
    return flags


def owners(flag: str) -> list[str]:
    """Return the names of the recipes that have the setting ``flag``. Plug-ins that fail are passed over."""
    found = []
    for name in names():
        try:
            recipe = recipe_class(name)
        except UserError:
            continue
        if flag in flags_of(recipe):
            found.append(name)
    return found


# --- What makes a class a recipe ----------------------------------------------------------------------------


def _require_valid(recipe: Any, place: str = "") -> None:
    """Raise UserError, which names ``recipe``, if it cannot be trained because something is missing."""
    where = place if place else getattr(recipe, "__qualname__", described(recipe))
    if not (inspect.isclass(recipe) and issubclass(recipe, Recipe)):
        raise UserError(f"{where}: a recipe must be a class derived from fastcyclegan.recipes.recipe.Recipe")
    if recipe in _checked:
        return
    missing = sorted(recipe.__abstractmethods__)
    missing += [name for name in ("name", "networks", "generators") if not hasattr(recipe, name)]
    if missing:
        raise UserError(f"{where}: a recipe must define {', '.join(missing)}")
    if not isinstance(recipe.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", recipe.name):
        raise UserError(
            f"{where}: the name of a recipe consists of small letters, digits and _, got"
            f" {described(recipe.name)}"
        )
    for one, other in (("state_dict", "load_state_dict"), ("load_state_dict", "state_dict")):
        if _defines(recipe, one) and not _defines(recipe, other):
            raise UserError(f"{where}: a recipe that defines {one} must define {other}")
    problem = _problem_of_names(recipe) or _problem_of_settings(recipe) or _problem_of_defaults(recipe)
    if problem:
        raise UserError(f"the recipe {recipe.name}: {problem}")
    _checked.add(recipe)


def _defines(recipe: type[Recipe], member: str) -> bool:
    return getattr(recipe, member) is not getattr(Recipe, member)


def _problem_of_names(recipe: type[Recipe]) -> str:
    for name in ("networks", "generators", "layouts"):
        value = getattr(recipe, name)
        if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
            return f"{name} must be a tuple of names, got {described(value)}"
        if not value or len(set(value)) < len(value):
            return f"{name} must have at least one name, and none twice, got {list(value)}"
    for name in recipe.generators:
        if name not in recipe.networks:
            return f"{name} is not one of its networks: {', '.join(recipe.networks)}"
    for name in recipe.directions.values():
        if name not in recipe.generators:
            return f"{name} translates, so it must be one of the generators: {', '.join(recipe.generators)}"
    for name in recipe.networks:
        if not re.fullmatch(r"[A-Za-z]\w*", name):
            return f"the name of a network must be letters, digits and _, got {described(name)}"
    for kind, known, found in (
        ("layout", get_args(Layout), recipe.layouts),
        ("direction", get_args(Direction), tuple(recipe.directions)),
    ):
        for each in found:
            if each not in known:
                return f"{each} is no {kind}; there are {', '.join(known)}"
    if not recipe.title.isidentifier():
        return f"its title must be letters and digits, got {described(recipe.title)}"
    return ""


def _problem_of_settings(recipe: type[Recipe]) -> str:
    for name, kind, base in (
        ("Model", recipe.Model, ModelSettings),
        ("Loss", recipe.Loss, LossSettings),
    ):
        is_frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
        if not (inspect.isclass(kind) and issubclass(kind, base) and is_frozen):
            return f"{name} must be a frozen dataclass derived from {base.__name__}"
        if "__annotations__" in vars(kind) and "__dataclass_params__" not in vars(kind):
            return f"{name} has settings, so it needs @dataclass(frozen=True)"
    taken = {field.name: group for group, kind in OF_ALL.items() for field in dataclasses.fields(kind)}
    own = [field.name for kind in (recipe.Model, recipe.Loss) for field in dataclasses.fields(kind)]
    for name in own:
        if name in taken:
            return f"its flag --{name} is already one of all recipes"
        if own.count(name) > 1:
            return f"its flag --{name} is in Model and in Loss"
        if name in ("help", "h") or f"no_{name}" in own:
            return f"its flag --{name} has another meaning on the command line"
    for name in (*recipe.fixed, *recipe.shown_settings):
        if name not in own:
            return f"{name} is none of its settings"
    return ""


def _problem_of_defaults(recipe: type[Recipe]) -> str:
    groups = {**OF_ALL, "model": recipe.Model, "loss": recipe.Loss}
    for changes in (recipe.defaults, {} if recipe.builtin is None else recipe.builtin):
        for group, values in changes.items():
            if group not in groups:
                return f"its defaults are for {group}, but the groups are {', '.join(groups)}"
            known = {field.name for field in dataclasses.fields(groups[group])}
            for name in values:
                if name not in known:
                    return f"its defaults set {name}, which is not in the group {group}"
    return ""
