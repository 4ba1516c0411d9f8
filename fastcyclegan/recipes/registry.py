"""Which recipe a configuration asks for: the one place that knows them all."""

from __future__ import annotations

from fastcyclegan.config import TrainConfig
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.recipe import Recipe


def make_recipe(config: TrainConfig) -> Recipe:
    """Return the recipe of ``config``, before its first iteration."""
    return CycleGANRecipe(config.loss)
