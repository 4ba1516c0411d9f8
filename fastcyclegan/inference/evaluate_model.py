"""Measure the translations that a network in memory makes of held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcyclegan.config import Direction, TrainConfig
from fastcyclegan.console import Console
from fastcyclegan.errors import UserError
from fastcyclegan.inference.evaluate import config_of, data_of, measure, translation_task
from fastcyclegan.inference.translator import Translator
from fastcyclegan.metrics.held_out import find_held_out
from fastcyclegan.settings.evaluate import EvaluateConfig

_OF_FILES = (
    "fake",
    "real",
    "weights",
    "epoch",
    "key",
    "ema",
    "no_dropout",
    "json",
    "page",
    "compare",
    "device",
)


def model_settings(given: Mapping[str, Any]) -> EvaluateConfig:
    """Return the configuration for the settings ``given`` to a model's ``evaluate``.

    Raises TypeError for a setting that there is not, and UserError for an invalid value.
    """
    for name in _OF_FILES:
        if name in given:
            raise TypeError(
                f"evaluate: a model has no setting {name!r}; fastcyclegan.evaluate has it for files"
            )
    return config_of({**given, "weights": Path("the model")})


def evaluate_model(
    translator: Translator,
    model: TrainConfig,
    of_model: Direction,
    config: EvaluateConfig,
    folder: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Return the metrics of what ``translator`` makes of held-out images, as evaluate.py writes them.

    ``model`` is the configuration of the network, ``of_model`` the direction in terms of its domains, and
    ``folder`` that of its run, if there is one.
    """
    data, recipe = data_of(model, config, folder), model.make_recipe()
    if data.dataset_mode == "single":
        raise UserError(
            f"evaluate: {recipe.title} has single images, and no others to compare translations with"
        )
    required = recipe.requirements
    images = find_held_out(data, model.run.seed, required, recipe.layouts, console.log)
    task = translation_task(translator, images, data, required, of_model, config)
    return measure(task, config, console).as_dict()
