"""The official training step of each recipe, with which fastcyclegan's training step is compared.

Everything that the benches and ``scripts/prove.py`` must know of a recipe is in its row of
BASELINES_BY_RECIPE. A new row needs a module such as ``cyclegan_baseline.py``, which runs an iteration in the
official order. A recipe without a row can be trained, but it is not compared with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bench import cyclegan_baseline, pix2pix_baseline
from bench.flat_images import join_names
from fastcyclegan.config import TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine import Engine
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.recipes.recipe import Settings

Fakes = Callable[[int], Tensor]
"""Returns the first n generated images of each kind, [kinds, n, C, H, W], in a fixed order of the kinds."""
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class OfficialStep(Protocol):
    """The official training iteration of a recipe, on the networks that it was built with.

    ``optimizers`` update these networks. Everything runs with torch's defaults, on the device and in the
    dtype of the networks; the caller enables autocast.
    """

    optimizers: list[torch.optim.Optimizer]

    def run(self, batch: Batch) -> Mapping[str, Tensor]:
        """Run one iteration and return its losses under the recipe's names."""

    def state(self) -> Any:
        """Return what carries over to the next iteration, apart from weights and moments."""

    def fakes(self, count: int) -> Tensor:
        """Return the first ``count`` generated images of each kind, [kinds, count, C, H, W]."""

    def mark(self, wrap: Wrap) -> None:
        """Wrap the function that trains the discriminators."""


@dataclass(frozen=True)
class Baseline:
    """What the training step of a recipe is compared with."""

    plain_networks: Callable[[TrainConfig], dict[str, nn.Module]]
    """Builds the networks as plain PyTorch modules, whose parameters have the recipe's names.

    None of fastcyclegan's optimised code runs in them, and their weights may have any values.
    """
    official: Callable[[Mapping[str, nn.Module], TrainConfig, float], OfficialStep]
    """Builds the official training step of such networks, with a learning rate."""
    fakes: Callable[[Engine], Fakes]
    """Returns how to get the images that an engine generates, in the same order as ``OfficialStep.fakes``.

    It is called before the engine's first iteration. The images must be those of the iterations that are
    timed, also if a CUDA graph replays them.
    """
    settings: Settings = field(default_factory=dict)
    """Settings that both sides need to compute the same, by group and name, such as no dropout."""


BASELINES_BY_RECIPE: dict[str, Baseline] = {
    CycleGANRecipe.name: Baseline(
        cyclegan_baseline.plain_networks, cyclegan_baseline.OfficialStep, cyclegan_baseline.pooled_images
    ),
    Pix2PixRecipe.name: Baseline(
        pix2pix_baseline.plain_networks,
        pix2pix_baseline.OfficialStep,
        pix2pix_baseline.translated_images,
        pix2pix_baseline.SETTINGS,
    ),
}


def baseline_of(model: str) -> Baseline:
    """Return the baseline of the recipe ``model``. Raises UserError if it has none."""
    if model not in BASELINES_BY_RECIPE:
        raise UserError(
            f"there is no official training step to compare {model} with; there is one for"
            f" {join_names(list(BASELINES_BY_RECIPE))}"
        )
    return BASELINES_BY_RECIPE[model]


def compared_config(model: str) -> TrainConfig:
    """Return the settings with which the recipe ``model`` is compared: its defaults, where possible.

    Raises UserError if there is no such recipe, or if it has no baseline.
    """
    config = default_config(model)
    return with_changes(config, baseline_of(model).settings)


def plain_networks(config: TrainConfig, seed: int = 0) -> dict[str, nn.Module]:
    """Return the networks of ``config`` as plain PyTorch modules.

    None of fastcyclegan's optimised code runs in them. Their initial weights are those that fastcyclegan's
    networks get from ``seed``.
    """
    torch.manual_seed(seed)
    ours = config.make_recipe().build_networks()
    plain = baseline_of(config.model.model).plain_networks(config)
    for name, net in ours.items():
        plain[name].load_state_dict(net.state_dict())
    return {name: plain[name] for name in ours}
