"""Which networks of a run are frozen, and when (``--freeze`` and ``--warmup_D``)."""

from __future__ import annotations

from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.recipe import Recipe


def require_possible_freeze(config: TrainConfig) -> None:
    """Raise UserError if ``config`` freezes what does not exist, or leaves nothing to train."""
    recipe, frozen, warmup = config.make_recipe(), config.finetune.frozen, config.finetune.warmup_D
    for name in frozen:
        if name not in recipe.networks:
            names = ", ".join(recipe.networks)
            raise UserError(f"--freeze: there is no network {name!r}; the networks are {names}")
    if not set(recipe.networks) - set(frozen):
        raise UserError("--freeze: all networks are frozen, so there is nothing to train")
    if warmup and not recipe.discriminators:
        raise UserError(f"--warmup_D trains only the discriminators, but {recipe.title} has none")
    if warmup and not set(recipe.discriminators) - set(frozen):
        raise UserError(
            f"--warmup_D {warmup} trains only the discriminators, but --freeze freezes all of them"
        )


def require_possible_warmup(config: TrainConfig, iterations: int) -> None:
    """Raise UserError if the warm-up of the discriminators is longer than a run of ``iterations``."""
    warmup = config.finetune.warmup_D
    if warmup > iterations:
        raise UserError(f"--warmup_D {warmup} is longer than the run, which has {iterations} iterations")


def frozen_networks(config: TrainConfig, recipe: Recipe, completed: int) -> tuple[str, ...]:
    """Return the networks that are frozen in the iteration after ``completed``, counted from the first start.

    Those of ``--freeze`` always are. All generators are during the warm-up of the discriminators.
    """
    frozen = config.finetune.frozen
    if completed < config.finetune.warmup_D:
        frozen += recipe.generators
    return tuple(name for name in recipe.networks if name in frozen)


def describe_frozen(config: TrainConfig, recipe: Recipe) -> dict[str, str]:
    """Return rows for the table of a run that say which networks are frozen, and when."""
    rows, warmup = {}, config.finetune.warmup_D
    if config.finetune.frozen:
        names = [name for name in recipe.networks if name in config.finetune.frozen]
        rows["frozen"] = f"{', '.join(names)} (--freeze)"
    if warmup:
        names = [name for name in recipe.discriminators if name not in config.finetune.frozen]
        train = "train" if len(names) > 1 else "trains"
        first = "first iteration" if warmup == 1 else f"first {warmup:,} iterations"
        rows["warm-up"] = f"only {' and '.join(names)} {train} in the {first} (--warmup_D)"
    return rows
