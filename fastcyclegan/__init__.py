"""CycleGAN, fast: unpaired image-to-image translation, proved equal to a plain PyTorch reference."""

from fastcyclegan.blocks import InstanceNormAct
from fastcyclegan.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator

__all__ = ["Discriminator", "Generator", "InstanceNormAct", "PixelDiscriminator", "UnetGenerator"]
__version__ = "0.1.0"
