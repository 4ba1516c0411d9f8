"""The settings of the official networks, which several recipes train."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_maximum, check_minimum
from fastcyclegan.settings.crop_size import named_sides, sides_of
from fastcyclegan.settings.data import FIXED_SIZE, DataConfig
from fastcyclegan.settings.recipe import ModelSettings

# More than any use needs, but little enough to be refused before memory or time run out.
_MOST_CHANNELS, _MOST_LAYERS, _MOST_BLOCKS, _MOST_UNET = 2**31 - 1, 12, 256, 4096
# A U-Net has at least five levels.
LEAST_UNET = 32


def unet_levels(side: int) -> int | None:
    """Return how often unet_N halves images, where N is ``side``, or None if there is no such U-Net."""
    is_power = side & (side - 1) == 0
    return side.bit_length() - 1 if is_power and LEAST_UNET <= side <= _MOST_UNET else None


@dataclass(frozen=True)
class ModelConfig(ModelSettings):
    """Architecture of ResNet, U-Net and PatchGAN networks, as in the official code."""

    #: Number of channels of domain A: 3 for colour, 1 for gray. Other numbers need loaders of your own, which
    #: only fit in Python accepts.
    input_nc: int = 3
    #: Number of channels of domain B, like --input_nc.
    output_nc: int = 3
    #: Generator: resnet_9blocks, resnet_6blocks (or any resnet_Nblocks), or unet_256, unet_128 (or any unet_N
    #: where N is a power of two from 32), which takes images whose sides are multiples of N.
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
    #: Official flag for generators without dropout, which is the default of CycleGAN.
    no_dropout: bool = False
    #: Distribution of the initial weights of the convolutions.
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    #: Scale of the initial weights with --init_type normal, xavier or orthogonal.
    init_gain: float = 0.02

    dropout_by_default = False
    """Whether the generators have dropout if neither use_dropout nor no_dropout is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, 1, "input_nc", "output_nc", "n_layers_D", "ngf", "ndf")
        check_minimum(self, 0, "init_gain")
        check_maximum(self, _MOST_CHANNELS, "input_nc", "output_nc", "ngf", "ndf")
        check_maximum(self, _MOST_LAYERS, "n_layers_D")
        if self.use_dropout and self.no_dropout:
            raise UserError("--use_dropout and --no_dropout contradict each other")
        self._check_generator()
        if self.affine and self.norm != "instance":
            raise UserError(f"--affine needs --norm instance, got --norm {self.norm}")
        for name, usual in (("upsample", "transpose"), ("downsample", "stride")):
            value = getattr(self, name)
            if self.netG.startswith("unet") and value != usual:
                raise UserError(f"--{name} {value} only works with ResNet generators, not with {self.netG}")

    def _check_generator(self) -> None:
        name = re.fullmatch(r"resnet_([0-9]{1,9})blocks|unet_([0-9]{1,9})", self.netG)
        if name is None or (name[2] is not None and unet_levels(int(name[2])) is None):
            raise UserError(
                "netG must be resnet_9blocks, resnet_6blocks, resnet_Nblocks, unet_256, unet_128, or unet_N"
                f" where N is a power of two from {LEAST_UNET} to {_MOST_UNET}, got {described(self.netG)}"
            )
        if name[1] is not None and int(name[1]) > _MOST_BLOCKS:
            raise UserError(f"netG must have at most {_MOST_BLOCKS} blocks, got {self.netG}")

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        return {"use_dropout": ("no_dropout",), "no_dropout": ("use_dropout",)}.get(name, ())

    @classmethod
    def of_file(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``settings`` of a network in a file, of which use_dropout says whether it has dropout,
        as settings of this class, which may have dropout by default.
        """
        own = dict(settings)
        if cls.dropout_by_default and "use_dropout" in own:
            own["no_dropout"] = not own["use_dropout"]
        return own

    @property
    def has_dropout(self) -> bool:
        """Whether the generators have dropout."""
        return self.use_dropout or (self.dropout_by_default and not self.no_dropout)

    @property
    def levels(self) -> int | None:
        """How often a U-Net generator halves its images, or None for another generator."""
        if not self.netG.startswith("unet_"):
            return None
        return unet_levels(int(self.netG.removeprefix("unet_")))

    @property
    def size_multiple(self) -> int:
        """The height and the width of an image must be multiples of this number."""
        return 4 if self.levels is None else 2**self.levels

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
                advice = self._fitting_unet(data)
                raise UserError(f"{name} is not a multiple of {self.size_multiple}: {reason}{advice}")
            if side < self.least_side:
                needed = f"--netD {self.netD} needs at least {self.least_side} pixels"
                raise UserError(f"{name} is too small: {needed}")

    def _fitting_unet(self, data: DataConfig) -> str:
        """Return the advice to use the U-Net that fits the crops of ``data``, or "" for other generators."""
        if self.levels is None:
            return ""
        fitting = LEAST_UNET
        while fitting < _MOST_UNET and all(side % (2 * fitting) == 0 for side in sides_of(data.crop_size)):
            fitting *= 2
        if any(side % fitting for side in sides_of(data.crop_size)):
            return f"; no U-Net fits, because the sides are no multiples of {LEAST_UNET}"
        return f"; --netG unet_{fitting} fits"
