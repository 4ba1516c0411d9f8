"""Create an engine that is configured for a GPU, for dry runs on a machine that has none."""

from __future__ import annotations

from typing import Any

import torch

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.testing import seeded_networks

SMALL = ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8, use_dropout=True)
CPU = torch.device("cpu")


def engine(model: ModelConfig = SMALL, loss: LossConfig = LossConfig(), **options: Any) -> Engine:
    """Return an engine that selects the kernels although it is on the CPU."""
    with as_on_gpu(), dry_run():
        return Engine(
            CycleGANRecipe(loss),
            seeded_networks(model),
            OptimConfig(),
            CPU,
            "bf16",
            options=EngineConfig(**options),
        )
