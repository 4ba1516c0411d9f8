"""CycleGAN, fast: unpaired image-to-image translation, proved equal to a plain PyTorch reference."""

from fastcyclegan.blocks import InstanceNormAct
from fastcyclegan.loading import load_generator
from fastcyclegan.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator

__all__ = ["Discriminator", "Generator", "InstanceNormAct", "PixelDiscriminator", "UnetGenerator", "load_generator"]
__version__ = "0.1.0"
