"""Forward and backward passes of a reflection-padded convolution, built from matrix products and borders.

README.md derives the form of each. Arguments are not checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ._products import REFLECT, Gradient, Options, contract, product, sum_splits, wgrad
from ._weights import (
    IMAGE,
    contract_weight,
    images_of,
    runs_of,
    stack_bias,
    stride_between,
    window,
    window_weight,
)
from .border_launch import Frame, Pixels, embed, reflect_pad

Route = Literal["wide", "expand", "contract"]


def route_of(in_channels: int, out_channels: int, bordered: bool) -> Route:
    """Return the form in which to compute a convolution, which depends on its numbers of channels.

    "expand": few input channels, as in an image. "contract": few output channels. "wide": many of both.
    ``bordered`` tells whether a norm has written the input, with its border; such a convolution is never
    expanded.
    """
    if in_channels <= IMAGE and not bordered:
        return "expand"
    return "contract" if out_channels <= IMAGE else "wide"


def _size(x: Tensor, w: Tensor, padding: int) -> tuple[int, int]:
    """Return the height and width of the convolution's output for x [N, C, H, W]."""
    _, _, KH, KW, _ = w.shape
    return x.shape[2] + 2 * padding - KH + 1, x.shape[3] + 2 * padding - KW + 1


def bordered_image(x: Tensor, padding: int, kernel: int) -> Pixels:
    """Copy an image of few channels into a buffer with a reflected border and IMAGE channels per pixel."""
    frame = Frame(padding, padding, x.shape[2] + 2 * padding, x.shape[3] + 2 * padding, window(kernel))
    return embed(x, frame, reflect=True, dtype=x.dtype, step=IMAGE)


def bordered(x: Tensor, padding: int, kernel: int, route: Route) -> Pixels:
    """Pad x [N, C, H, W] with a reflected border, in the form that the weight gradient of ``route`` reads."""
    if route == "expand":
        return bordered_image(x, padding, kernel)
    return Pixels.of(reflect_pad(x, padding))


def forward(x: Tensor, w: Tensor, bias: Sequence[Tensor], padding: int, route: Route) -> Tensor:
    """Convolve x [N, C, H, W] with w [P, O, KH, KW, C] after padding it by reflection.

    ``route`` is "expand" or "wide"; for "contract", see ``forward_bordered``.
    """
    size, stack = _size(x, w, padding), stack_bias(bias)
    if route == "expand":
        image = bordered_image(x, padding, w.shape[2])
        return product(image, window_weight(w), size, Options(bias=stack))
    if not padding:
        return product(Pixels.of(x), w, size, Options(bias=stack))
    return product(Pixels.of(x), w, size, Options(REFLECT, padding, (x.shape[2], x.shape[3]), bias=stack))


def forward_bordered(y: Tensor, w: Tensor, bias: Sequence[Tensor], tanh: bool, route: Route) -> Tensor:
    """Convolve y, an image that already includes its border. The output may have few or many channels.

    With ``tanh``, return the tanh of the convolution, in fp32.
    """
    size, stack = _size(y, w, 0), stack_bias(bias)
    if route == "contract":
        return contract(Pixels.of(y), contract_weight(w), w.shape[1], w.shape[3], size, stack, tanh)
    out = product(Pixels.of(y), w, size, Options(bias=stack))
    return torch.tanh(out.float()) if tanh else out


def embedded_gradient(g: Tensor, k: int, dtype: torch.dtype, tanh: Tensor | None, route: Route) -> Pixels:
    """Surround the gradient g of the output with k - 1 zeros on each side, as the other gradients read it.

    ``tanh`` is the output if a tanh was applied, otherwise None. The zeros at the right of a line are also
    those at the left of the next line.
    """
    slack, step = 0, g.shape[1]
    if route == "contract":
        slack, step = window(k), IMAGE
    frame = Frame(k - 1, k - 1, g.shape[2] + 2 * (k - 1), g.shape[3] + k - 1, slack)
    return embed(g, frame, reflect=False, dtype=dtype, step=step, tanh=tanh)


def input_gradient(dy: Pixels, w: Tensor, size: tuple[int, int], route: Route) -> Tensor:
    """Compute the gradient [N, C, *size] of the bordered input.

    ``dy`` is the output's gradient, surrounded by zeros (see ``embedded_gradient``).
    """
    if route == "expand":
        return contract(dy, contract_weight(w, turned=True), w.shape[4], w.shape[3], size)
    if route == "contract":
        return product(dy, window_weight(w, turned=True), size)
    return product(dy, w, size, Options(transposed=True))


def weight_gradient(
    dy: Pixels, y: Pixels, shape: tuple[int, int, int], groups: int, height: int, route: Route
) -> Gradient:
    """Compute the gradients of ``groups`` weights of ``shape`` (O, C, k), as parts that must still be summed.

    They are computed from ``height`` lines of ``dy`` and from the bordered input y. dy is the output's
    gradient, either embedded among zeros or in the packed layout. In both, positions of a line that are not
    pixels are zero.
    """
    O, C, k = shape
    row = window(k) * IMAGE
    if route == "expand":
        part = wgrad(dy, y, (O, row, k, 1), groups, dy.first, height * dy.pitch)
        return Gradient(part, 0, (k * row, row, IMAGE, 1))
    if route == "contract":
        # Here too, the windows are those of the image with few channels. The channels of y are therefore the
        # rows of the product, and the taps run in reverse.
        part = wgrad(y, dy, (C, row, k, 1), groups, 0, y.limit)
        return Gradient(part, (k - 1) * (row + IMAGE), (1, -row, -IMAGE, k * row))
    part = wgrad(dy, y, (O, C, k, k), groups, dy.first, height * dy.pitch)
    return Gradient(part, 0, (k * k * C, k * C, C, 1))


def bias_gradient(dy: Pixels, P: int, O: int) -> Tensor:
    """Return the gradients of P biases, [P, O] in fp32: the sums of ``dy`` over pixels and images.

    ``dy`` is the output's gradient, surrounded by zeros (see ``embedded_gradient``).
    """
    return dy.data.view(P, dy.N // P * dy.rows, dy.step).sum(1, dtype=torch.float32)[:, :O]


def weight_gradients(
    dy: Pixels,
    y: Pixels,
    height: int,
    weights: Sequence[Tensor],
    needs: Sequence[bool],
    into: Sequence[Tensor],
    accumulate: bool,
    route: Route = "wide",
) -> None:
    """Compute the gradients of the ``weights`` that ``needs`` selects, and write them to ``into``.

    ``into`` has one tensor for each selected weight. If ``accumulate`` is true, the gradients are added to
    these tensors instead. Image n belongs to weight n // (N / P). Frozen weights are skipped. Each run of
    adjacent weights that need a gradient takes one product, and one sum if their targets are equally spaced
    in memory.
    """
    O, C, k, _ = weights[0].shape
    per, gradients = dy.N // len(weights), []
    for first, count in runs_of(needs):
        images = (first * per, count * per)
        dy_part, y_part = images_of(dy, *images), images_of(y, *images)
        gradients.append(weight_gradient(dy_part, y_part, (O, C, k), count, height, route))
    sum_all(gradients, into, accumulate)


def sum_all(gradients: Sequence[Gradient], into: Sequence[Tensor], accumulate: bool) -> None:
    """Add up the parts of ``gradients`` and write the sums to ``into``, or add them if ``accumulate``.

    ``into`` has one tensor for each weight, in order, and each gradient covers one or more weights. If
    several launches would add in place, the sums are first computed in separate memory and added once all of
    them are available, so that a launch that fails leaves nothing half added. The bits are the same.
    """
    sums: list[tuple[Gradient, Tensor, int]] = []
    count = 0
    for gradient in gradients:
        targets = into[count : count + gradient.part.shape[1]]
        count += len(targets)
        step = stride_between(targets)
        if step is not None:
            sums.append((gradient, targets[0], step))
            continue
        for g, target in enumerate(targets):
            one = Gradient(gradient.part[:, g : g + 1], gradient.start, gradient.strides)
            sums.append((one, target, target.numel()))
    if not accumulate or len(sums) <= 1:
        for gradient, target, step in sums:
            sum_splits(gradient, target, step, accumulate=accumulate)
        return
    # In fp32, as in the kernel, so that the target is rounded only once.
    fresh = [torch.empty_like(target, dtype=torch.float32) for target in into]
    sum_all(gradients, fresh, False)
    for target, total in zip(into, fresh, strict=True):
        target.add_(total)
