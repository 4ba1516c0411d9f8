"""Drop-in replacements for the functions and classes of the official code, pytorch-CycleGAN-and-pix2pix.

They cover models/networks.py and util/image_pool.py, so a project can switch by changing one import:
``from fastcyclegan.compat import define_G, define_D, GANLoss, ImagePool``. Arguments, defaults, state_dict
keys and results are the same as in the official code; only the implementation differs. ``impl`` and
``recompute`` work as in ``fastcyclegan.Generator``. Unlike the official ReLUs, those here do not work in
place, so code that collects the outputs of layers sees the output of each norm unchanged. Names that the
official code does not know raise NotImplementedError.

Uses ``reference``, ``nn`` and ``kernels``.
"""

from __future__ import annotations

from fastcyclegan.compat.blocks import ResnetBlock, UnetSkipConnectionBlock
from fastcyclegan.compat.initialise import init_net, init_weights
from fastcyclegan.compat.networks import (
    NLayerDiscriminator,
    PixelDiscriminator,
    ResnetGenerator,
    UnetGenerator,
    define_D,
    define_G,
)
from fastcyclegan.compat.norms import Identity, get_norm_layer
from fastcyclegan.compat.training import GANLoss, ImagePool, cal_gradient_penalty, get_scheduler

__all__ = [
    "GANLoss",
    "Identity",
    "ImagePool",
    "NLayerDiscriminator",
    "PixelDiscriminator",
    "ResnetBlock",
    "ResnetGenerator",
    "UnetGenerator",
    "UnetSkipConnectionBlock",
    "cal_gradient_penalty",
    "define_D",
    "define_G",
    "get_norm_layer",
    "get_scheduler",
    "init_net",
    "init_weights",
]
