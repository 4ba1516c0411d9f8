"""Settings for tiny models, tensors to train them on, and a comparison of two models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcyclegan import CycleGAN

TINY: dict[str, Any] = {
    "netG": "resnet_1blocks",
    "ngf": 2,
    "ndf": 2,
    "netD": "n_layers",
    "n_layers_D": 1,
    "pool_size": 2,
    "load_size": 20,
    "crop_size": 16,
    "num_threads": 0,
    "loader": "folder",
    "device": "cpu",
    "n_epochs": 1,
    "n_epochs_decay": 1,
}


def same(one: CycleGAN, other: CycleGAN) -> bool:
    pairs = zip(one.networks.values(), other.networks.values(), strict=True)
    return all(
        torch.equal(a, b)
        for x, y in pairs
        for a, b in zip(x.state_dict().values(), y.state_dict().values(), strict=True)
    )


def tensors(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
