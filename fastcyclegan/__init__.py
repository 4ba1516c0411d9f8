"""Fast CycleGAN and pix2pix for image-to-image translation, proved equal to a plain PyTorch reference.

Each folder is a "room". Its ``__init__.py`` states what belongs there and which other rooms it may use:
``nn`` (networks and layers), ``kernels`` (Triton), ``data`` (images and loaders), ``recipes`` (losses and
training phases), ``engine`` (one iteration on a device), ``training`` (a whole run), ``checkpoints`` (weight
files), ``inference`` (using trained generators), ``metrics`` (measuring images), ``fusion`` (``accelerate``),
``compat`` (official functions and classes), ``official`` (running official checkouts), ``devtools`` and
``kernel_gate`` (checking kernels without a GPU). ``compat`` is public, and so are the modules next to these
folders: ``api``, ``cli``, ``commands``, ``config``, ``models``, ``reference``, ``testing``, ``errors``,
``console``, ``tensor_files``.

Importing this package imports nothing else: names and modules are imported when they are used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcyclegan.checkpoints.loading import load_generator
    from fastcyclegan.errors import UserError
    from fastcyclegan.fusion.accelerate import accelerate
    from fastcyclegan.inference.evaluate import evaluate
    from fastcyclegan.models import CycleGAN, Pix2Pix, model_class
    from fastcyclegan.nn.layers import InstanceNormAct
    from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator
    from fastcyclegan.recipes.registry import register_recipe

__all__ = [
    "CycleGAN",
    "Discriminator",
    "Generator",
    "InstanceNormAct",
    "Pix2Pix",
    "PixelDiscriminator",
    "UnetGenerator",
    "UserError",
    "accelerate",
    "evaluate",
    "load_generator",
    "model_class",
    "register_recipe",
]
__version__ = "0.1.0"

# torch takes a second or more to import. A command must take Ctrl-C, and tell of a missing package, before.
_PLACES = {
    "CycleGAN": "models",
    "Discriminator": "nn.networks",
    "Generator": "nn.networks",
    "InstanceNormAct": "nn.layers",
    "Pix2Pix": "models",
    "PixelDiscriminator": "nn.networks",
    "UnetGenerator": "nn.networks",
    "UserError": "errors",
    "accelerate": "fusion.accelerate",
    "evaluate": "inference.evaluate",
    "load_generator": "checkpoints.loading",
    "model_class": "models",
    "register_recipe": "recipes.registry",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
