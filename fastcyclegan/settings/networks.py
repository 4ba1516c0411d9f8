"""The settings of the official networks, which several recipes train."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_maximum, check_minimum
from fastcyclegan.settings.crop_size import named_sides
from fastcyclegan.settings.data import FIXED_SIZE, DataConfig
from fastcyclegan.settings.recipe import ModelSettings

# More than any use needs, but little enough to be refused before memory or time run out.
_MOST_CHANNELS, _MOST_LAYERS, _MOST_BLOCKS = 2**31 - 1, 12, 256


@dataclass(frozen=True)
class ModelConfig(ModelSettings):
    """Architecture of ResNet, U-Net and PatchGAN networks, as in the official code."""

    #: Number of channels of domain A: 3 for colour, 1 for gray. Other numbers need loaders of your own, which
    #: only fit in Python accepts.
    input_nc: int = 3
    #: Number of channels of domain B, like --input_nc.
    output_nc: int = 3
    #: Generator: resnet_9blocks, resnet_6blocks (or any resnet_Nblocks), unet_256 or unet_128.
    netG: str = "resnet_9blocks"
    #: Discriminator. basic: the 70x70 PatchGAN; n_layers: a PatchGAN with --n_layers_D layers; pixel: a 1x1
    #: PatchGAN, which classifies single pixels.
    netD: Literal["basic", "n_layers", "pixel"] = "basic"
    #: Number of layers of the discriminators with --netD n_layers.
    n_layers_D: int = 3
    #: Number of channels of the generators' first layer.
    ngf: int = 64
    #: Number of channels of the discriminators' first layer.
    ndf: int = 64
    #: Normalisation layers of the generators and discriminators.
    norm: Literal["instance", "batch", "none"] = "instance"
    #: Give instance norm a learned scale and shift per channel.
    affine: bool = False
    #: How a ResNet generator upsamples: by transposed convolution, or by resizing and then convolving, which
    #: avoids checkerboard patterns. antialias: by a blur and then convolving, as CUT does.
    upsample: Literal["transpose", "resize", "antialias"] = "transpose"
    #: How a ResNet generator downsamples: by a convolution with stride 2, or (antialias) by a convolution and
    #: then a blur with stride 2, as CUT does.
    downsample: Literal["stride", "antialias"] = "stride"
    #: Use dropout with probability 0.5 in the generators.
    use_dropout: bool = False
    #: Official flag for networks without dropout, which is the default here as well.
    no_dropout: bool = False
    #: Distribution of the initial weights of the convolutions.
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    #: Scale of the initial weights with --init_type normal, xavier or orthogonal.
    init_gain: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, 1, "input_nc", "output_nc", "n_layers_D", "ngf", "ndf")
        check_minimum(self, 0, "init_gain")
        check_maximum(self, _MOST_CHANNELS, "input_nc", "output_nc", "ngf", "ndf")
        check_maximum(self, _MOST_LAYERS, "n_layers_D")
        if self.use_dropout and self.no_dropout:
            raise UserError("--use_dropout and --no_dropout contradict each other")
        blocks = re.fullmatch(r"resnet_([0-9]{1,9})blocks|unet_(?:128|256)", self.netG)
        if blocks is None:
            raise UserError(
                "netG must be resnet_9blocks, resnet_6blocks, resnet_Nblocks, unet_256 or unet_128, got"
                f" {described(self.netG)}"
            )
        if blocks[1] is not None and int(blocks[1]) > _MOST_BLOCKS:
            raise UserError(f"netG must have at most {_MOST_BLOCKS} blocks, got {self.netG}")
        if self.affine and self.norm != "instance":
            raise UserError(f"--affine needs --norm instance, got --norm {self.norm}")
        for name, usual in (("upsample", "transpose"), ("downsample", "stride")):
            value = getattr(self, name)
            if self.netG.startswith("unet") and value != usual:
                raise UserError(f"--{name} {value} only works with ResNet generators, not with {self.netG}")

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        return {"use_dropout": ("no_dropout",), "no_dropout": ("use_dropout",)}.get(name, ())

    @property
    def size_multiple(self) -> int:
        """The height and the width of an image must be multiples of this number."""
        if self.netG.startswith("unet"):
            return int(self.netG.removeprefix("unet_"))
        return 4

    @property
    def least_side(self) -> int:
        """The smallest image side that the networks accept, in pixels.

        The output of a PatchGAN must have at least one patch, and its norms need more than one value to
        normalise.
        """
        if self.netD == "pixel":
            return 8
        layers = self.n_layers_D if self.netD == "n_layers" else 3
        return max(8, 3 * 2**layers)

    def check_crop(self, data: DataConfig) -> None:
        """Raise UserError if images that are cropped as in ``data`` do not fit the networks."""
        if data.preprocess not in FIXED_SIZE:
            return
        for name, side in named_sides(data.crop_size).items():
            if side % self.size_multiple:
                reason = f"{self.netG} would return images of a different size"
                raise UserError(f"{name} is not a multiple of {self.size_multiple}: {reason}")
            if side < self.least_side:
                needed = f"--netD {self.netD} needs at least {self.least_side} pixels"
                raise UserError(f"{name} is too small: {needed}")
