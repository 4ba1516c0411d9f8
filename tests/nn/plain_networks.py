"""The public networks, built from the modules of torch.nn alone, with the official state_dict keys.

The tests of odd calls compare our networks with these, which share no code with ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of torch's own layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            conv = nn.Conv2d(channels, channels, 3)
            layers += [nn.ReflectionPad2d(1), conv, nn.InstanceNorm2d(channels), nn.ReLU()]
        self.conv_block = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_block(x)
        return x + y


class Level(nn.Module):
    """One level of a U-Net of torch's own layers."""

    def __init__(self, *layers: nn.Module, outermost: bool = False) -> None:
        super().__init__()
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y if self.outermost else torch.cat([x, y], 1)


class Network(nn.Module):
    """A network of torch's own layers, under the name ``model`` as in the official code."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y


class Pixels(nn.Module):
    """A network of torch's own layers, under the name ``net`` as in the official pixel discriminator."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class Norm(nn.InstanceNorm2d):
    """An affine instance norm and its activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.leaky_relu(super().forward(input), 0.2)


def generator(ngf: int = 2) -> nn.Module:
    def normed(conv: nn.Module, width: int) -> list[nn.Module]:
        return [conv, nn.InstanceNorm2d(width), nn.ReLU()]

    layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(3, ngf, 7), ngf)]
    for width in (2 * ngf, 4 * ngf):
        layers += normed(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), width)
    layers.append(Block(4 * ngf))
    for width in (4 * ngf, 2 * ngf):
        up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1)
        layers += normed(up, width // 2)
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh()]
    return Network(nn.Sequential(*layers))


def unet(ngf: int = 2) -> nn.Module:
    def down(channels: int, width: int) -> nn.Module:
        return nn.Conv2d(channels, width, 4, stride=2, padding=1)

    def up(channels: int, width: int) -> nn.Module:
        return nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)

    wide = 8 * ngf
    innermost = [nn.LeakyReLU(0.2), down(wide, wide), nn.ReLU(), up(wide, wide), nn.InstanceNorm2d(wide)]
    level = Level(*innermost)
    for width in (4 * ngf, 2 * ngf, ngf):
        into = [nn.LeakyReLU(0.2), down(width, 2 * width), nn.InstanceNorm2d(2 * width)]
        out = [nn.ReLU(), up(4 * width, width), nn.InstanceNorm2d(width)]
        level = Level(*into, level, *out)
    ends = [down(3, ngf), level, nn.ReLU(), up(2 * ngf, 3), nn.Tanh()]
    return Network(Level(*ends, outermost=True))


def discriminator(ndf: int = 2) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for width, stride in ((ndf, 2), (2 * ndf, 2), (4 * ndf, 1)):
        conv = nn.Conv2d(width, 2 * width, 4, stride=stride, padding=1)
        layers += [conv, nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2)]
    return Network(nn.Sequential(*layers, nn.Conv2d(8 * ndf, 1, 4, padding=1)))


def pixels(ndf: int = 4) -> nn.Module:
    layers = [nn.Conv2d(3, ndf, 1), nn.LeakyReLU(0.2), nn.Conv2d(ndf, 2 * ndf, 1)]
    layers += [nn.InstanceNorm2d(2 * ndf), nn.LeakyReLU(0.2), nn.Conv2d(2 * ndf, 1, 1)]
    return Pixels(*layers)


def layers() -> nn.Module:
    """A small network as users of ``accelerate`` write it."""
    first = [nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)]
    second = [nn.LeakyReLU(0.01), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")]
    return nn.Sequential(*first, *second, nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
