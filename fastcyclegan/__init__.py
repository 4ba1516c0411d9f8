"""Fast CycleGAN for unpaired image-to-image translation, proved equal to a plain PyTorch reference.

Each folder is a "room". Its ``__init__.py`` states what belongs there and which other rooms it may use:
``nn`` (networks and layers), ``kernels`` (Triton), ``data`` (images and loaders), ``recipes`` (losses and
training phases), ``engine`` (one iteration on a device), ``training`` (a whole run), ``checkpoints`` (weight
files), ``inference`` (using trained generators), ``fusion`` (``accelerate``), ``official`` (running official
checkouts), ``devtools`` and ``kernel_gate`` (checking kernels without a GPU). The modules next to these
folders are public: ``api``, ``cli``, ``config``, ``compat``, ``reference``, ``testing``, ``errors``,
``console``, ``tensor_files``.
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
    # Imported lazily: ``api`` pulls in loaders and logging, which are not needed to build a network.
    if name == "CycleGAN":
        from fastcyclegan.api import CycleGAN

        return CycleGAN
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
