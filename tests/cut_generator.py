"""The generator of CUT in plain PyTorch, written without the code of the package: a second opinion.

The state_dict keys are those of its authors' ``ResnetGenerator``, which blurs where it changes the size
unless ``no_antialias`` (downsampling) or ``no_antialias_up`` (upsampling) is set.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad


class Blur(nn.Module):
    """A buffer ``filt`` [C, 1, k, k] made of rows of Pascal's triangle, with the given sum."""

    filt: Tensor

    def __init__(self, channels: int, row: list[int], total: float) -> None:
        super().__init__()
        square = torch.tensor([[a * b for b in row] for a in row], dtype=torch.float32)
        self.register_buffer("filt", (total * square / square.sum())[None, None].repeat(channels, 1, 1, 1))


class Down(Blur):
    """The weighted sum of 3x3 shifted images, of which every second pixel is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1, 2, 1], 1.0)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = pad(x, (1, 1, 1, 1), mode="reflect")
        total = torch.zeros_like(x[:, :, 1:-1, 1:-1])
        for i in range(3):
            for j in range(3):
                total = total + self.filt[:, 0, i, j, None, None] * x[:, :, i : i + height, j : j + width]
        return total[:, :, ::2, ::2]


class Up(Blur):
    """Zeros between the pixels of the padded image, then a convolution with the filter turned by 180 degrees.

    A transposed convolution is defined by that. CUT pads it by 2 and cuts one more pixel from each side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, [1, 3, 3, 1], 4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = pad(x, (1, 1, 1, 1), mode="replicate")
        n, channels, height, width = x.shape
        spread = x.new_zeros(n, channels, 2 * height - 1, 2 * width - 1)
        spread[:, :, ::2, ::2] = x
        y = conv2d(pad(spread, (1, 1, 1, 1)), self.filt.flip(2, 3), groups=channels)
        return y[:, :, 1:, 1:][:, :, :-1, :-1]


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(channels, channels, 3), nn.Conv2d(channels, channels, 3)
        norms = nn.InstanceNorm2d(channels), nn.InstanceNorm2d(channels)
        pads = nn.ReflectionPad2d(1), nn.ReflectionPad2d(1)
        self.conv_block = nn.Sequential(pads[0], first, norms[0], nn.ReLU(), pads[1], second, norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class CutGenerator(nn.Module):
    def __init__(self, ngf: int, n_blocks: int, no_antialias: bool, no_antialias_up: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7)]
        layers += [nn.InstanceNorm2d(ngf), nn.ReLU()]
        for c in (ngf, 2 * ngf):
            layers += [nn.Conv2d(c, 2 * c, 3, stride=2 if no_antialias else 1, padding=1)]
            layers += [nn.InstanceNorm2d(2 * c), nn.ReLU()]
            if not no_antialias:
                layers += [Down(2 * c)]
        layers += [Block(4 * ngf) for _ in range(n_blocks)]
        for c in (4 * ngf, 2 * ngf):
            if no_antialias_up:
                layers += [nn.ConvTranspose2d(c, c // 2, 3, stride=2, padding=1, output_padding=1)]
            else:
                layers += [Up(c), nn.Conv2d(c, c // 2, 3, padding=1)]
            layers += [nn.InstanceNorm2d(c // 2), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y
