"""Networks from other fields in plain PyTorch, for testing and measuring ``accelerate``.

They are written as their authors write them, and none is adapted to ``accelerate``: several norms share an
activation, layers are registered twice, and forward methods branch on attributes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- A 3-D U-Net of the nnU-Net kind: Isensee et al., "nnU-Net", 2021 ---------------------------------------


class ConvNormNonlin(nn.Module):
    """Convolution, norm and LeakyReLU, registered both as attributes and in the Sequential that runs."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, stride, padding=1)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)
        self.all_modules = nn.Sequential(self.conv, self.norm, self.nonlin)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.all_modules(x)
        return y


class StackedConvs(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormNonlin(inputs, outputs, stride), ConvNormNonlin(outputs, outputs, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convs(x)
        return y


class Decoder(nn.Module):
    """Decoder of the U-Net.

    With ``deep_supervision`` it returns the segmentations at all resolutions, finest first. Otherwise it
    returns only the finest one.
    """

    def __init__(self, features: Sequence[int], classes: int) -> None:
        super().__init__()
        self.deep_supervision = False
        steps = list(zip(features[::-1], features[-2::-1], strict=False))
        self.transpconvs = nn.ModuleList(nn.ConvTranspose3d(below, skip, 2, 2) for below, skip in steps)
        self.stages = nn.ModuleList(StackedConvs(2 * skip, skip, 1) for _, skip in steps)
        self.seg_layers = nn.ModuleList(nn.Conv3d(skip, classes, 1) for _, skip in steps)

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        x, outputs = skips[-1], []
        for s in range(len(self.stages)):
            x = self.stages[s](torch.cat((self.transpconvs[s](x), skips[-(s + 2)]), 1))
            if self.deep_supervision or s == len(self.stages) - 1:
                outputs.append(self.seg_layers[s](x))
        if self.deep_supervision:
            return outputs[::-1]
        return outputs[0]


class UNet3d(nn.Module):
    """A 3-D U-Net. It maps images [N, channels, D, H, W] to segmentations [N, classes, D, H, W].

    D, H and W must be multiples of 2 ** (len(features) - 1).
    """

    def __init__(
        self, features: Sequence[int] = (32, 64, 128, 256), channels: int = 1, classes: int = 3
    ) -> None:
        super().__init__()
        stages = [StackedConvs(channels, features[0], 1)]
        for inputs, outputs in itertools.pairwise(features):
            stages.append(StackedConvs(inputs, outputs, 2))
        self.stages = nn.Sequential(*stages)
        self.decoder = Decoder(features, classes)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        y: Tensor | list[Tensor] = self.decoder(skips)
        return y


# --- Fast style transfer: Johnson et al., "Perceptual Losses", 2016, as in PyTorch's examples ---------------


class PaddedConv(nn.Module):
    """Reflection padding and a convolution, after upsampling by a factor of ``upsample`` if it is set."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, upsample: int | None = None
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.reflection_pad = nn.ReflectionPad2d(kernel_size // 2)
        self.conv2d = nn.Conv2d(inputs, outputs, kernel_size, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, mode="nearest", scale_factor=self.upsample)
        y: Tensor = self.conv2d(self.reflection_pad(x))
        return y


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = PaddedConv(channels, channels, 3)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = PaddedConv(channels, channels, 3)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.in1(self.conv1(x)))
        y = self.in2(self.conv2(y))
        return y + x


class StyleTransfer(nn.Module):
    """The style transfer network. It maps images [N, 3, H, W] to images of the same shape.

    H and W must be multiples of 4. A single ReLU module follows all five norms.
    """

    def __init__(self, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        w1, w2, w4 = width, 2 * width, 4 * width
        self.conv1, self.in1 = PaddedConv(3, w1, 9), nn.InstanceNorm2d(w1, affine=True)
        self.conv2, self.in2 = PaddedConv(w1, w2, 3, stride=2), nn.InstanceNorm2d(w2, affine=True)
        self.conv3, self.in3 = PaddedConv(w2, w4, 3, stride=2), nn.InstanceNorm2d(w4, affine=True)
        self.blocks = nn.ModuleList(Residual(w4) for _ in range(blocks))
        self.deconv1, self.in4 = PaddedConv(w4, w2, 3, upsample=2), nn.InstanceNorm2d(w2, affine=True)
        self.deconv2, self.in5 = PaddedConv(w2, w1, 3, upsample=2), nn.InstanceNorm2d(w1, affine=True)
        self.deconv3 = PaddedConv(w1, 3, 9)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.in1(self.conv1(x)))
        y = self.relu(self.in2(self.conv2(y)))
        y = self.relu(self.in3(self.conv3(y)))
        for block in self.blocks:
            y = block(y)
        y = self.relu(self.in4(self.deconv1(y)))
        y = self.relu(self.in5(self.deconv2(y)))
        y = self.deconv3(y)
        return y


# --- Super-resolution: Ledig et al., "SRGAN", 2017, with instance norm and reflecting convolutions ----------


def reflecting(inputs: int, outputs: int, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, padding_mode="reflect")


class SuperBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first = [reflecting(width, width), nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*first, reflecting(width, width), nn.InstanceNorm2d(width, affine=True))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class SuperResolution(nn.Module):
    """The super-resolution network. It maps images [N, 3, H, W] to images [N, 3, 2 H, 2 W].

    The norm before the long skip connection has no activation. The activation after the upsampler's norm has
    a parameter.
    """

    def __init__(self, width: int = 64, blocks: int = 8, edge: int = 9) -> None:
        super().__init__()
        self.head = nn.Sequential(reflecting(3, width, edge), nn.LeakyReLU(0.2))
        self.body = nn.Sequential(
            *(SuperBlock(width) for _ in range(blocks)), reflecting(width, width), nn.InstanceNorm2d(width)
        )
        self.up = nn.Sequential(
            reflecting(width, 4 * width),
            nn.PixelShuffle(2),
            nn.InstanceNorm2d(width, affine=True),
            nn.PReLU(),
        )
        self.tail = reflecting(width, 3, edge)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        y = self.tail(self.up(y + self.body(y)))
        return y


Net = tuple[Callable[[], nn.Module], tuple[int, ...]]
"""A function that builds a network, and the shape of its input."""

# NETS are as large as in the papers, except that the U-Net lacks two levels; SMALL_NETS are as small as
# possible.
NETS: dict[str, Net] = {
    "3-D U-Net": (UNet3d, (1, 1, 64, 64, 64)),
    "style transfer": (StyleTransfer, (1, 3, 256, 256)),
    "super-resolution": (SuperResolution, (1, 3, 128, 128)),
}
SMALL_NETS: dict[str, Net] = {
    "3-D U-Net": (lambda: UNet3d((4, 6)), (1, 1, 4, 4, 6)),
    "style transfer": (lambda: StyleTransfer(4, 1), (1, 3, 8, 12)),
    "super-resolution": (lambda: SuperResolution(4, 1, 5), (2, 3, 4, 3)),
}
