"""CycleGAN, fast: unpaired image-to-image translation, proved equal to a plain PyTorch reference.

Each folder is a room, and its ``__init__.py`` says what belongs there and which rooms it may use: ``nn``
(networks and layers), ``kernels`` (Triton), ``data`` (images and loaders), ``recipes`` (losses, what is
trained), ``engine`` (an iteration on a device), ``training`` (a run), ``checkpoints`` (files of weights),
``inference`` (trained generators), ``fusion`` (``accelerate``), ``official`` (official checkouts),
``devtools`` and ``kernel_gate`` (kernels without a GPU). The modules beside them are public: ``api``,
``cli``, ``config``, ``compat``, ``reference``, ``testing``, ``errors``, ``console``, ``tensor_files``.
"""

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
