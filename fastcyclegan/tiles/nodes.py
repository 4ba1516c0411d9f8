"""Maps of a network, and how a window of each one is computed from windows of others.

A ``Node`` is a map [1, C, H, W]. It knows which rows and columns of its inputs it reads for given ones of its
own, and computes them. All inputs of a node have the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.nn.as_trained import KeyedDropout
from fastcyclegan.tiles.calls import Calls, unpadded
from fastcyclegan.tiles.spans import (
    Span,
    Window,
    clipped,
    convolved_span,
    is_inside,
    length,
    padded_span,
    shown,
    transposed_span,
)

Moments = tuple[Tensor, Tensor]
"""The mean and the biased variance [C] of a whole map."""


@dataclass(frozen=True)
class Place:
    """Where a node computes: the ``window`` of its own map, and what it ``reads`` of inputs of ``size``."""

    window: Window
    reads: Window
    size: tuple[int, int]


@dataclass(frozen=True)
class Tools:
    """What nodes compute with: the kernels, and the statistics of whole maps that are known so far."""

    calls: Calls
    moments: Mapping[Node, Moments]


@dataclass(frozen=True, eq=False)
class Node:
    """A map with ``channels`` channels. ``name`` is that of the layer which computes it."""

    name: str
    inputs: tuple[Node, ...]
    channels: int

    @property
    def work(self) -> int:
        """The number of multiplications for a pixel."""
        return 0

    def side(self, axis: int, side: int) -> int:
        """Return the side along ``axis`` (0: rows, 1: columns) for inputs whose side is ``side``."""
        return side

    def reads(self, axis: int, span: Span, side: int) -> Span:
        """Return the pixels of the inputs, whose side is ``side``, that ``span`` is computed from."""
        return span

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        """Return the window from what it reads of each input [1, C, h, w], without changing that."""
        raise NotImplementedError


class Image(Node):
    """The image itself, which is not computed."""


@dataclass(frozen=True, eq=False)
class Padded(Node):
    """A map with a padding of ``before`` and ``after`` pixels per axis, as ``mode`` fills it."""

    before: tuple[int, int]
    after: tuple[int, int]
    mode: str

    def side(self, axis: int, side: int) -> int:
        before, after = self.before[axis], self.after[axis]
        if self.mode == "reflect" and max(before, after) >= side:
            raise UserError(
                f"{self.name} reflects {max(before, after)} pixels of a map with a side of {side}"
            )
        return side + before + after

    def reads(self, axis: int, span: Span, side: int) -> Span:
        return padded_span(self._of_input(axis, span), side, self.mode)

    def _of_input(self, axis: int, span: Span) -> Span:
        return span[0] - self.before[axis], span[1] - self.before[axis]

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        pixels = inputs[0].permute(0, 2, 3, 1)
        for axis, span in enumerate(place.window):
            pixels = self._along(axis, pixels, self._of_input(axis, span), place)
        return pixels.permute(0, 3, 1, 2)

    def _along(self, axis: int, x: Tensor, span: Span, place: Place) -> Tensor:
        """Return ``span`` along ``axis`` of x [1, H, W, C], of which x is what ``place`` reads."""
        side, read = place.size[axis], place.reads[axis]
        if is_inside(span, side):
            return x
        shape = list(x.shape)
        shape[axis + 1] = length(span)
        y = x.new_empty(shape)
        inside = clipped(span, side)
        if inside[0] < span[1] and inside[1] > span[0]:
            target = y.narrow(axis + 1, inside[0] - span[0], length(inside))
            target.copy_(x.narrow(axis + 1, inside[0] - read[0], length(inside)))
        for position in (*range(span[0], min(0, span[1])), *range(max(side, span[0]), span[1])):
            target = y.select(axis + 1, position - span[0])
            if self.mode == "zeros":
                target.zero_()
            else:
                target.copy_(x.select(axis + 1, shown(position, side, self.mode) - read[0]))
        return y


@dataclass(frozen=True, eq=False)
class Convolved(Node):
    """A convolution without padding. ``conv`` has the weights, and ``following`` is the layer after it."""

    conv: Any
    following: nn.Module | None

    @property
    def work(self) -> int:
        weight = self.conv.weight
        return int(weight.numel())

    def side(self, axis: int, side: int) -> int:
        conv = self.conv
        return (side - conv.dilation[axis] * (conv.kernel_size[axis] - 1) - 1) // conv.stride[axis] + 1

    def reads(self, axis: int, span: Span, side: int) -> Span:
        conv = self.conv
        return convolved_span(span, conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis])

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return tools.calls.convolve(inputs[0], self.conv, self.following)


@dataclass(frozen=True, eq=False)
class Transposed(Node):
    """A transposed convolution. ``conv`` is the layer itself, and ``following`` the layer after it."""

    conv: Any
    following: nn.Module | None

    @property
    def work(self) -> int:
        sy, sx = self.conv.stride
        return int(self.conv.weight.numel()) // (sy * sx)

    def side(self, axis: int, side: int) -> int:
        kernel, stride, padding, dilation = self._sizes(axis)
        more = self.conv.output_padding[axis]
        return (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1

    def reads(self, axis: int, span: Span, side: int) -> Span:
        return transposed_span(span, side, self._sizes(axis))

    def _sizes(self, axis: int) -> tuple[int, int, int, int]:
        conv = self.conv
        return conv.kernel_size[axis], conv.stride[axis], conv.padding[axis], conv.dilation[axis]

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        paddings, more, slices = [], [], []
        for axis, (span, read) in enumerate(zip(place.window, place.reads, strict=True)):
            kernel, stride, padding, dilation = self._sizes(axis)
            # The result for this part of the input, without padding, starts and ends here.
            start = read[0] * stride - padding
            stop = (read[1] - 1) * stride - padding + dilation * (kernel - 1) + 1
            cut = max(min(span[0] - start, stop - span[1]), 0)
            paddings.append(cut)
            more.append(max(span[1] - stop, 0))
            slices.append(slice(span[0] - start - cut, span[1] - start - cut))
        conv = unpadded(self.conv, padding=paddings, output_padding=more)
        return tools.calls.convolve(inputs[0], conv, self.following)[:, :, slices[0], slices[1]]


@dataclass(frozen=True, eq=False)
class Blurred(Node):
    """A convolution of each channel with a filter of its own, [C, 1, k, k], and a stride of 2."""

    filter: Callable[[], Tensor]

    def side(self, axis: int, side: int) -> int:
        return (side - self.filter().shape[2]) // 2 + 1

    def reads(self, axis: int, span: Span, side: int) -> Span:
        return convolved_span(span, self.filter().shape[2], 2, 1)

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return F.conv2d(inputs[0], self.filter(), stride=2, groups=self.channels)


@dataclass(frozen=True, eq=False)
class BlurredUp(Node):
    """A transposed convolution of each channel with a filter of its own, [C, 1, k, k], and a stride of 2.

    ``padding`` pixels are cut off each side.
    """

    filter: Callable[[], Tensor]
    padding: int

    def side(self, axis: int, side: int) -> int:
        return (side - 1) * 2 - 2 * self.padding + self.filter().shape[2]

    def reads(self, axis: int, span: Span, side: int) -> Span:
        return transposed_span(span, side, (self.filter().shape[2], 2, self.padding, 1))

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        y = F.conv_transpose2d(inputs[0], self.filter(), stride=2, groups=self.channels)
        (top, bottom), (left, right) = (
            (span[0] - read[0] * 2 + self.padding, span[1] - read[0] * 2 + self.padding)
            for span, read in zip(place.window, place.reads, strict=True)
        )
        return y[:, :, top:bottom, left:right]


@dataclass(frozen=True, eq=False)
class Normalised(Node):
    """A norm over the whole first input with its activation. A second input is added to the result."""

    norm: Callable[[], Norm]

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        residual = inputs[1] if len(inputs) > 1 else None
        return tools.calls.normalise(inputs[0], self.norm(), tools.moments[self.inputs[0]], residual)


@dataclass(frozen=True, eq=False)
class Pointwise(Node):
    """A layer that computes each pixel from itself."""

    layer: Callable[[Tensor], Tensor]

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return self.layer(inputs[0])


@dataclass(frozen=True, eq=False)
class Dropped(Node):
    """Dropout whose mask depends on the position in the whole map."""

    layer: KeyedDropout

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return self.layer.on_window(inputs[0], place.window, place.size)


@dataclass(frozen=True, eq=False)
class Repeated(Node):
    """A map in which each pixel is repeated ``factor`` times along both axes (nearest-neighbour resizing)."""

    factor: int

    def side(self, axis: int, side: int) -> int:
        return side * self.factor

    def reads(self, axis: int, span: Span, side: int) -> Span:
        return clipped((span[0] // self.factor, (span[1] - 1) // self.factor + 1), side)

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        y = F.interpolate(inputs[0], scale_factor=float(self.factor), mode="nearest")
        (top, bottom), (left, right) = (
            (span[0] - read[0] * self.factor, span[1] - read[0] * self.factor)
            for span, read in zip(place.window, place.reads, strict=True)
        )
        return y[:, :, top:bottom, left:right]


class Summed(Node):
    """The sum of two maps."""

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return inputs[0] + inputs[1]


class Joined(Node):
    """The channels of several maps, one after another."""

    def compute(self, inputs: Sequence[Tensor], place: Place, tools: Tools) -> Tensor:
        return torch.cat(list(inputs), dim=1)
