"""Small networks of every architecture, for the tests of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastcyclegan.nn.as_trained import as_trained
from fastcyclegan.nn.chains import ResidualBlock
from fastcyclegan.nn.layers import FloatTanh, InstanceNormAct
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator
from tests.tiles.whole import randomised

Make = Callable[[], nn.Module]


def seeded(make: Make) -> nn.Module:
    torch.manual_seed(0)
    return randomised(make())


def resnet(**options: Any) -> Make:
    sizes = {"ngf": 4, "n_blocks": 2, "impl": "reference", **options}
    return lambda: Generator(**sizes)


def unet(**options: Any) -> Make:
    sizes = {"ngf": 4, "num_downs": 5, "impl": "reference", **options}
    return lambda: UnetGenerator(**sizes)


def trained(make: Make) -> Make:
    return lambda: as_trained(randomised(make()))


# Options that change the graph appear at least once each, and in pairs where they meet: at the edges, and in
# the residual blocks. The product of all of them is left out.
RESNETS: dict[str, Make] = {
    "no block": resnet(n_blocks=0),
    "one block": resnet(n_blocks=1, input_nc=1, output_nc=1),
    "nine blocks": resnet(n_blocks=9, ngf=2),
    "affine": resnet(affine=True),
    "dropout": resnet(use_dropout=True),
    "batch": resnet(norm="batch", use_dropout=True),
    "none": resnet(norm="none", n_blocks=3),
    "resize": resnet(upsample="resize", padding_type="replicate"),
    "antialias": resnet(upsample="antialias", downsample="antialias", padding_type="zero"),
    "antialias batch": resnet(upsample="antialias", downsample="antialias", norm="batch", n_blocks=1),
    "resize none": resnet(upsample="resize", padding_type="zero", norm="none", n_blocks=1),
    "as trained": trained(resnet(norm="batch", use_dropout=True)),
}
UNETS: dict[str, Make] = {
    "five": unet(),
    "affine": unet(affine=True, input_nc=1, output_nc=1),
    "batch": unet(norm="batch", use_dropout=True),
    "none": unet(norm="none"),
    "dropout": unet(num_downs=6, use_dropout=True),
    "as trained": trained(unet(norm="batch", num_downs=6, use_dropout=True)),
}


def _layers(*layers: nn.Module) -> Make:
    return lambda: nn.Sequential(*layers)


def _pads() -> nn.Module:
    return nn.Sequential(
        nn.ReflectionPad2d((3, 1, 0, 2)),
        nn.Conv2d(3, 4, (5, 3), stride=(3, 1), dilation=(1, 2)),
        nn.ReplicationPad2d((0, 4, 3, 1)),
        nn.PReLU(4),
        nn.ZeroPad2d((5, 0, 6, -2)),
        nn.Conv2d(4, 3, (2, 4), stride=(1, 3)),
    )


def _padding_modes() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, dilation=(2, 1), groups=3, padding=(2, 3), padding_mode="reflect"),
        InstanceNormAct(6, affine=True, act="leaky_relu", slope=0.3, impl="reference"),
        nn.Conv2d(6, 4, 4, stride=3, padding=2, padding_mode="replicate"),
        nn.SiLU(inplace=True),
        nn.Conv2d(4, 4, (4, 2), padding="same"),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.Conv2d(4, 2, 3, padding="valid"),
    )


def _upsampled() -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=3),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.InstanceNorm2d(4),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=0, output_padding=1),
        nn.Hardtanh(inplace=True),
        nn.ConvTranspose2d(4, 3, (2, 5), stride=(3, 2), padding=(1, 4), output_padding=(2, 1), groups=1),
    )


def _transposed() -> nn.Module:
    """Kernels smaller than the stride leave gaps, and a dilation leaves others."""
    return nn.Sequential(
        nn.ConvTranspose2d(3, 3, 1, stride=2),
        nn.ConvTranspose2d(3, 4, 2, stride=3, padding=1, output_padding=2),
        nn.ConvTranspose2d(4, 2, 2, dilation=3, output_padding=2),
    )


def _shared() -> nn.Module:
    relu, tanh = nn.ReLU(), FloatTanh()
    return nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Conv2d(4, 3, 3), tanh, tanh)


def _norms_in_odd_places() -> nn.Module:
    block = {"affine": False, "use_dropout": False}
    return nn.Sequential(
        nn.InstanceNorm2d(3),
        nn.Conv2d(3, 4, 3, stride=2),
        ResidualBlock(4, "instance", **block),
        nn.InstanceNorm2d(4, affine=True),
        ResidualBlock(4, "none", **block),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.LeakyReLU(-0.4),
        nn.ReLU(),
    )


SEQUENCES: dict[str, Make] = {
    "pads": _pads,
    "padding modes": _padding_modes,
    "upsampled": _upsampled,
    "transposed": _transposed,
    "shared layers": _shared,
    "norms in odd places": _norms_in_odd_places,
    "nothing": _layers(),
    "identity": _layers(nn.Identity(), nn.Sequential()),
    "discriminator": lambda: Discriminator(ndf=4, impl="reference"),
    "pixel discriminator": lambda: PixelDiscriminator(ndf=4, impl="reference"),
}
