"""Host side of the zero-padded convolution's kernels: forms, tiles, launches and passes.

Arguments are not checked here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

# Imported so that the kernels are registered.
from . import zero_conv_triton as _device_code  # noqa: F401
from ._convolution import Convolution
from ._launch import Config, interpreting, launch
from ._layout import empty_channels_last
from ._product_tiles import (
    CONV_TILES,
    TRANSPOSED_FP32_TILES,
    WGRAD_TILES,
    Tile,
    octave,
    product_configs,
    product_key,
)
from ._products import Gradient, contract, precision_of, product, shares_of
from ._tiles import tuned
from ._weights import IMAGE, contract_weight, images_of, runs_of, stack_bias, window, window_weight
from .border_launch import Frame, Pixels, embed
from .reflect_conv_passes import sum_all

# Small maps (a PatchGAN's 32 x 32 and 31 x 31) yield few tiles, so there is also a smaller tile.
TILES: dict[str, list[Tile]] = {**CONV_TILES, "hopper": [*CONV_TILES["hopper"], (64, 64, 64, 4, 4)]}
# These tiles have more warps, because the indices of a phase take registers too.
SCATTER_FP32_TILES: dict[str, list[Tile]] = {**TRANSPOSED_FP32_TILES, "ieee": [(64, 64, 32, 8, 2)]}
# For maps of up to 16 pixels, where 16 x 128 in fp32 would spill on Blackwell's consumer chips.
TINY_TILES: dict[str, list[Tile]] = {**TILES, "geforce": [(64, 64, 32, 8, 4)]}
# For weight gradients of up to 64 coarse channels or columns, where 64 x 128 with four warps would spill on
# Ampere, and 128 x 16 on Blackwell's consumer chips.
NARROW_WGRAD_TILES: dict[str, list[Tile]] = {
    **WGRAD_TILES,
    "ampere": [(64, 64, 32, 4, 4)],
    "geforce": [(64, 64, 32, 8, 2)],
}


@dataclass(frozen=True)
class Form:
    """A convolution, described by its weight [coarse channels, fine channels, k, k], stride and padding.

    Of its two images, the larger one is called fine and the other one coarse. If ``transposed`` is true, the
    input is the coarse image; otherwise it is the fine one.
    """

    coarse: int
    fine: int
    kernel: int
    stride: int
    padding: int
    transposed: bool

    @classmethod
    def of(cls, weight: Tensor, conv: Convolution) -> Form:
        coarse, fine, kernel, _ = weight.shape
        return cls(coarse, fine, kernel, conv.stride, conv.padding, conv.transposed)

    @property
    def contracts(self) -> bool:
        """Whether the convolution has many input channels, few output channels and stride 1."""
        return not self.transposed and self.stride == 1 and self.coarse <= IMAGE < self.fine


@dataclass(frozen=True)
class Fine:
    """A fine image in the form that the taps of a convolution read.

    ``pad`` is the number of zero pixels on each side of the image that are not stored in memory. If ``few``
    is true, the image has few channels and is stored with zeros around it and ``IMAGE`` channels per pixel,
    so that a row of taps is one window of pixels.
    """

    pixels: Pixels
    pad: int
    few: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.limit // self.pixels.pitch, self.pixels.pitch

    @classmethod
    def of(cls, x: Tensor, form: Form) -> Fine:
        """Describe x [N, C, H, W] (channels_last). If x has few channels, it is copied."""
        p = form.padding
        if x.shape[1] > IMAGE:
            return cls(Pixels.of(x), p)
        frame = Frame(p, p, x.shape[2] + 2 * p, x.shape[3] + 2 * p, window(form.kernel))
        return cls(embed(x, frame, reflect=False, dtype=x.dtype, step=IMAGE), 0, True)


# --- The products -------------------------------------------------------------------------------------------


def gather(x: Fine, w: Tensor, size: tuple[int, int], stride: int, bias: Tensor | None = None) -> Tensor:
    """Convolve the fine image x with w [P, O, k, k, C] and ``stride``.

    Returns the coarse image [N, O, *size] in channels_last.
    """
    w = window_weight(w) if x.few else w
    P, O, KH, KW, C = w.shape
    H, W = size
    data, N = x.pixels.data, x.pixels.N
    y = empty_channels_last(data, (N, O, H, W))
    precision = precision_of(data)
    constants = {
        "C": C, "O": O, "XS": x.pixels.step, "KH": KH, "KW": KW, "STRIDE": stride, "PAD": x.pad,
        "HAS_BIAS": bias is not None, "PRECISION": precision, "INTERPRET": interpreting(),
    }  # fmt: skip

    def run(config: Config) -> None:
        block_m, block_n, _ = config.constants.values()
        tiles = triton.cdiv(H * W, block_m)
        args = (data, w, bias, y, KH * KW, tiles, max(1, N // P), H, W, *x.size, x.pixels.rows)
        grid = N * tiles * triton.cdiv(O, block_n)
        launch("_zero_conv_gather_kernel", grid, args, constants, config)

    lists = TILES if H * W > 16 else TINY_TILES
    configs = product_configs(lists, data, precision, H * W, O, C)
    key = product_key(data, octave(N), octave(H * W), C, O, KH, KW, stride, precision)
    tuned("zero_gather", key, configs, y, run)
    return y


def scatter(x: Tensor, w: Tensor, size: tuple[int, int], form: Form, bias: Tensor | None = None) -> Tensor:
    """Apply the adjoint of ``gather``, a transposed convolution, to the coarse image x with weight w.

    x is [N, C, SH, SW], and w is [P, C, k, k, O]. Returns the fine image [N, O, *size] in channels_last.
    """
    P, C, k, _, O = w.shape
    (H, W), N, S = size, x.shape[0], form.stride
    y = empty_channels_last(x, (N, O, H, W))
    precision = precision_of(x)
    constants = {
        "C": C, "O": O, "K": k, "STRIDE": S, "PAD": form.padding, "HAS_BIAS": bias is not None,
        "PRECISION": precision, "INTERPRET": interpreting(),
    }  # fmt: skip
    pixels = triton.cdiv(H, S) * triton.cdiv(W, S)

    def run(config: Config) -> None:
        block_m, block_n, _ = config.constants.values()
        tiles = triton.cdiv(pixels, block_m)
        args = (x, w, bias, y, N, tiles, max(1, N // P), H, W, x.shape[2], x.shape[3])
        grid = S * S * N * tiles * triton.cdiv(O, block_n)
        launch("_zero_conv_scatter_kernel", grid, args, constants, config)

    lists = SCATTER_FP32_TILES if x.dtype == torch.float32 else TILES
    configs = product_configs(lists, x, precision, pixels, O, C)
    key = product_key(x, octave(N), octave(H * W), C, O, k, S, precision)
    tuned("zero_scatter", key, configs, y, run)
    return y


def line_of(size: tuple[int, int], block: int) -> int:
    """Return how many of the ``block`` pixels of a step are side by side in one line.

    Of all powers of two, this is the one with which an image of ``size`` needs the fewest steps.
    """
    lines = [block >> i for i in range(block.bit_length())]
    return min(lines, key=lambda line: triton.cdiv(size[0], block // line) * triton.cdiv(size[1], line))


def wgrad(
    y: Pixels, x: Fine, size: tuple[int, int], shape: tuple[int, int, int, int], groups: int, stride: int
) -> Tensor:
    """Compute a weight gradient as partial sums [SPLITS, G, O, KH KW C].

    Added up over the splits, they give the sum over all coarse pixels of y times the values that taps read
    from the fine x. ``size`` is the size of y, and ``shape`` is (O, C, KH, KW). If C exceeds the step of x,
    the C values are a window of pixels. y and x contain G groups of images, one after the other.
    """
    O, C, KH, KW = shape
    H, W = size
    data, per, columns = x.pixels.data, y.N // groups, KH * KW * C
    if per == 0:
        return data.new_zeros((1, groups, O, columns), dtype=torch.float32)
    precision = precision_of(y.data)
    lists = WGRAD_TILES if min(O, columns) > 64 else NARROW_WGRAD_TILES
    configs = product_configs(lists, data, precision, O, columns, H * W)
    key = product_key(data, octave(per), groups, octave(H * W), O, C, KH, KW, stride, precision)
    run = functools.partial(_launch_wgrad, y, x, size, shape, groups, stride)
    part: Tensor = tuned("zero_wgrad", key, configs, data, run)
    return part


def _launch_wgrad(
    y: Pixels,
    x: Fine,
    size: tuple[int, int],
    shape: tuple[int, int, int, int],
    groups: int,
    stride: int,
    config: Config,
) -> Tensor:
    O, C, KH, KW = shape
    H, W = size
    data, per, columns = x.pixels.data, y.N // groups, KH * KW * C
    block_m, block_n, block_k = config.constants.values()
    line = line_of(size, block_k)
    across = triton.cdiv(W, line)
    chunks = across * triton.cdiv(H, block_k // line)
    blocks = groups * triton.cdiv(O, block_m) * triton.cdiv(columns, block_n)
    shares, steps = shares_of(data.device, blocks, per * chunks, (block_m, block_n))
    part = data.new_empty((shares, groups, O, columns), dtype=torch.float32)
    args = (y.data, data, part, shares, steps, across, chunks, per, groups, H, W, *x.size, x.pixels.rows)
    constants = {
        "O": O, "C": C, "XS": x.pixels.step, "KH": KH, "KW": KW, "STRIDE": stride, "PAD": x.pad,
        "PRECISION": precision_of(y.data), "INTERPRET": interpreting(), "LINE": line,
    }  # fmt: skip
    launch("_zero_conv_wgrad_kernel", blocks * shares, args, constants, config)
    return part


# --- The passes ---------------------------------------------------------------------------------------------


def forward(y: Tensor, w: Tensor, bias: Sequence[Tensor], form: Form, size: tuple[int, int]) -> Tensor:
    """Convolve y [N, C, H, W] with w [P, coarse channels, k, k, fine channels]; return [N, O, *size]."""
    stack, p = stack_bias(bias), form.padding
    if form.transposed:
        return scatter(y, w, size, form, stack)
    if form.contracts:
        frame = Frame(p, p, y.shape[2] + 2 * p, y.shape[3] + 2 * p)
        pixels = embed(y, frame, reflect=False, dtype=y.dtype, step=y.shape[1]) if p else Pixels.of(y)
        return contract(pixels, contract_weight(w), w.shape[1], form.kernel, size, stack)
    return gather(Fine.of(y, form), w, size, form.stride, stack)


def embedded_gradient(g: Tensor, form: Form) -> Fine:
    """Surround the output's gradient g with zeros, for a convolution with few output channels and stride 1.

    There are as many zeros as the taps need to compute the gradient of every input pixel.
    """
    k, margin = form.kernel, form.kernel - 1 - form.padding
    frame = Frame(margin, margin, g.shape[2] + 2 * margin, g.shape[3] + 2 * margin, window(k))
    return Fine(embed(g, frame, reflect=False, dtype=g.dtype, step=IMAGE), 0, True)


def fine_gradient(g: Tensor, form: Form) -> Fine | None:
    """Return the output's gradient g in the form from which the input and weight gradients are computed.

    That form exists only if g is the fine image, or if g has few channels and the stride is 1. Otherwise
    these gradients are computed from g itself, and the result is None.
    """
    if form.contracts:
        return embedded_gradient(g, form)
    return Fine.of(g, form) if form.transposed else None


def input_gradient(g: Tensor, fine: Fine | None, w: Tensor, size: tuple[int, int], form: Form) -> Tensor:
    """Compute the gradient [N, C, *size] of the input from the output's gradient g.

    ``fine`` is the result of ``fine_gradient`` for g, which can be None.
    """
    if fine is None:
        return scatter(g, w, size, form)
    if form.transposed:
        return gather(fine, w, size, form.stride)
    return product(fine.pixels, window_weight(w, turned=True), size)


def coarse_and_fine(g: Tensor, fine: Fine | None, y: Tensor, form: Form) -> tuple[Tensor, Fine]:
    """Return the coarse image and the fine image from which a weight gradient is computed.

    They are the output's gradient g and the input y, or the other way round. ``fine`` is the result of
    ``fine_gradient`` for g, which can be None.
    """
    if fine is None:
        return g, Fine.of(y, form)
    return y, fine


def weight_gradients(
    coarse: Tensor,
    fine: Fine,
    form: Form,
    weights: Sequence[Tensor],
    needs: Sequence[bool],
    into: Sequence[Tensor],
    accumulate: bool,
) -> None:
    """Compute the gradients of the ``weights`` that ``needs`` selects, and write them to ``into``.

    ``into`` has one tensor for each selected weight. If ``accumulate`` is true, the gradients are added to
    these tensors instead. ``coarse`` and ``fine`` are the images that ``coarse_and_fine`` returns. Frozen
    weights are skipped. Each run of adjacent weights that need a gradient takes one product, and one sum if
    their targets are equally spaced in memory.
    """
    O, C, k = coarse.shape[1], weights[0].shape[1], form.kernel
    row = window(k) * IMAGE
    shape, start, strides = (O, C, k, k), 0, (k * k * C, k * C, C, 1)
    if fine.few:
        shape, strides = (O, row, k, 1), (k * row, row, IMAGE, 1)
    if form.contracts:
        # Here the output's gradient is the image with few channels. The input's channels are therefore the
        # rows of the product, and the taps run in reverse.
        start, strides = (k - 1) * (row + IMAGE), (1, -row, -IMAGE, k * row)
    per, pixels = coarse.shape[0] // len(weights), Pixels.of(coarse)
    size = (coarse.shape[2], coarse.shape[3])
    gradients = []
    for first, count in runs_of(needs):
        images = (first * per, count * per)
        group = Fine(images_of(fine.pixels, *images), fine.pad, fine.few)
        part = wgrad(images_of(pixels, *images), group, size, shape, count, form.stride)
        gradients.append(Gradient(part, start, strides))
    sum_all(gradients, into, accumulate)


def bias_gradient(g: Tensor, P: int) -> Tensor:
    """Return the gradients of P biases, [P, O] in fp32: the sums of g [N, O, H, W] over pixels and images.

    g is the output's gradient in channels_last.
    """
    N, O, H, W = g.shape
    return g.permute(0, 2, 3, 1).view(P, N // P * H * W, O).sum(1, dtype=torch.float32)
