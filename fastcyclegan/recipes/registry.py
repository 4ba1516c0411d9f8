"""Select the recipe for a configuration. This is the only place that lists all recipes."""

from __future__ import annotations

from fastcyclegan.config import TrainConfig
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.recipe import Recipe


def make_recipe(config: TrainConfig) -> Recipe:
    """Return a new recipe for ``config``, in the state before its first iteration."""
    return CycleGANRecipe(config.loss)
