"""CycleGAN, fast: unpaired image-to-image translation, proved equal to a plain PyTorch reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.errors import UserError
from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.nn.layers import InstanceNormAct
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator

if TYPE_CHECKING:
    from fastcyclegan.api import CycleGAN

__all__ = [
    "CycleGAN",
    "Discriminator",
    "Generator",
    "InstanceNormAct",
    "PixelDiscriminator",
    "UnetGenerator",
    "UserError",
    "accelerate",
    "load_generator",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # It brings loaders and logs, which who wants a network does not need.
    if name == "CycleGAN":
        from fastcyclegan.api import CycleGAN

        return CycleGAN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
