"""Arguments of a convolution, as ``torch.ops.aten.convolution`` and ``zero_conv`` take them.

Imports only torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class AtenConvolution:
    """The arguments of ``torch.ops.aten.convolution`` that follow x, weight and bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    def flat(self) -> tuple[Any, ...]:
        """Return the arguments in PyTorch's order."""
        sides = (self.stride, self.padding, self.dilation)
        return (*sides, self.transposed, self.output_padding, self.groups)

    def out_channels(self, weight: Tensor) -> int:
        """Return the number of output channels of the convolution with ``weight``."""
        if self.transposed:
            return weight.shape[1] * self.groups
        return weight.shape[0]

    def out_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of the output of convolving x [N, C, H, W] with ``weight``."""
        sides = (self._out_side(x, weight, 0), self._out_side(x, weight, 1))
        return x.shape[0], self.out_channels(weight), *sides

    def _out_side(self, x: Tensor, weight: Tensor, i: int) -> int:
        side, window = x.shape[2 + i], self.dilation[i] * (weight.shape[2 + i] - 1) + 1
        if self.transposed:
            return (side - 1) * self.stride[i] - 2 * self.padding[i] + window + self.output_padding[i]
        return (side + 2 * self.padding[i] - window) // self.stride[i] + 1


@dataclass(frozen=True)
class Convolution:
    """A zero-padded convolution with weights [O, C, k, k], or a transposed one with weights [C, O, k, k]."""

    stride: int = 1
    padding: int = 0
    transposed: bool = False
    output_padding: int = 0

    @property
    def aten(self) -> AtenConvolution:
        """The same convolution, as arguments for PyTorch's operator."""
        sides = ([self.stride] * 2, [self.padding] * 2, [1, 1])
        return AtenConvolution(*sides, self.transposed, [self.output_padding] * 2, 1)

    def fits(self, channels: int, weight_shape: Sequence[int]) -> bool:
        """Return whether the kernels support this convolution.

        ``channels`` is the number of input channels, and ``weight_shape`` is the shape of each weight.
        """
        if len(weight_shape) != 4 or weight_shape[2] != weight_shape[3] or min(weight_shape) < 1:
            return False
        k = weight_shape[2]
        if k > 7 or self.stride not in (1, 2) or not 0 <= self.padding < k:
            return False
        if self.transposed:
            return weight_shape[0] == channels and 0 <= self.output_padding < self.stride
        return weight_shape[1] == channels and self.output_padding == 0

    def out_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of the output of convolving x with ``weight``."""
        return self.aten.out_shape(x, weight)
