"""The official training step of CycleGAN as the benches compare it: a row of ``baselines.py``.

``official_order.py`` contains the iteration itself. This module connects it to the benches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.official_order import OfficialCycleGAN
from fastcyclegan import reference
from fastcyclegan.config import TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import CycleGANRecipe


def cyclegan_config(identity: bool = True, **model: Any) -> TrainConfig:
    """Return the default settings with the given ones of the networks, with or without identity loss."""
    config = with_changes(default_config(CycleGANRecipe.name), {"model": model})
    if identity:
        return config
    return with_changes(config, {"loss": {"lambda_identity": 0.0}})


def block_count(config: TrainConfig) -> int:
    """Return the number of residual blocks of the ResNet generators of ``config``."""
    model: Any = config.model
    return int(model.netG.removeprefix("resnet_").removesuffix("blocks"))


def plain_networks(config: TrainConfig) -> dict[str, nn.Module]:
    """Return two ResNet generators and two PatchGAN discriminators, as plain reference modules."""
    model: Any = config.model
    plain: dict[str, nn.Module] = {}
    for name in CycleGANRecipe.networks:
        if name in CycleGANRecipe.generators:
            plain[name] = reference.Generator(ngf=model.ngf, n_blocks=block_count(config))
        else:
            plain[name] = reference.Discriminator(ndf=model.ndf)
    return plain


class OfficialStep:
    """The official iteration of the networks ``nets`` with learning rate ``lr``; see ``baselines.py``."""

    def __init__(self, nets: Mapping[str, nn.Module], config: TrainConfig, lr: float) -> None:
        loss: Any = config.loss
        self.model = OfficialCycleGAN(
            nets["G_AB"],
            nets["G_BA"],
            nets["D_B"],
            nets["D_A"],
            gan_mode=loss.gan_mode,
            pool_size=loss.pool_size,
            lr=lr,
            lambda_A=loss.lambda_A,
            lambda_B=loss.lambda_B,
            lambda_identity=loss.lambda_identity,
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.model.optimizer_G, self.model.optimizer_D]

    def run(self, batch: Batch) -> dict[str, Tensor]:
        self.model.set_input(batch.A, batch.B)
        self.model.optimize_parameters()
        # A loss that is off is the number 0.
        return {name: value for name, value in self.model.losses().items() if isinstance(value, Tensor)}

    def state(self) -> Any:
        return [self.model.fake_A_pool.images, self.model.fake_B_pool.images]

    def fakes(self, count: int) -> Tensor:
        """Return the first images of the pools, of domain B and of domain A."""
        pools = (self.model.fake_B_pool, self.model.fake_A_pool)
        return torch.stack([torch.cat(pool.images[:count]) for pool in pools])

    def mark(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.model.backward_D_basic = wrap(self.model.backward_D_basic)  # type: ignore[method-assign]


def pooled_images(engine: Engine) -> Callable[[int], Tensor]:
    """Return how to get the generated images of ``engine``.

    They come from the recipe's pools, which store all generated images until they are full.
    """
    recipe: Any = engine.recipe

    def fakes(count: int) -> Tensor:
        return torch.stack([torch.stack(list(recipe.pools[side].slots[:count])) for side in "BA"])

    return fakes
