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

# Small maps (a PatchGAN's 32 x 32 and 31 x 31) give few tiles, so the list also has a smaller one.
TILES: dict[str, list[Tile]] = {**CONV_TILES, "hopper": [*CONV_TILES["hopper"], (64, 64, 64, 4, 4)]}
# These have more warps, because the indices of a phase also take registers.
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

    ``transposed``: the input is the coarse image.
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
        """Whether the convolution maps many channels to an image's few channels at stride 1."""
        return not self.transposed and self.stride == 1 and self.coarse <= IMAGE < self.fine


@dataclass(frozen=True)
class Fine:
    """A fine image in the form that taps read, in lines of its pitch.

    ``pad``: zero pixels around the image that are not in memory. ``few``: the image has few channels and is
    stored with zeros around it and ``IMAGE`` channels per pixel, so that a row of taps is one window of
    pixels.
    """

    pixels: Pixels
    pad: int
    few: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.limit // self.pixels.pitch, self.pixels.pitch

    @classmethod
    def of(cls, x: Tensor, form: Form) -> Fine:
        """Describe x [N, C, H, W] (channels_last); an x of few channels is copied."""
        p = form.padding
        if x.shape[1] > IMAGE:
            return cls(Pixels.of(x), p)
        frame = Frame(p, p, x.shape[2] + 2 * p, x.shape[3] + 2 * p, window(form.kernel))
        return cls(embed(x, frame, reflect=False, dtype=x.dtype, step=IMAGE), 0, True)


# --- The products -------------------------------------------------------------------------------------------


def gather(x: Fine, w: Tensor, size: tuple[int, int], stride: int, bias: Tensor | None = None) -> Tensor:
    """Return the coarse image [N, O, *size] in channels_last from the fine x and w [P, O, k, k, C]."""
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
    """Return the fine image [N, O, *size] in channels_last from the coarse x and w.

    x is [N, C, SH, SW], and w is [P, C, k, k, O].
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
    """Return how many of a step's ``block`` pixels are side by side in a line.

    It is the power of two that needs the fewest steps for an image of ``size``.
    """
    lines = [block >> i for i in range(block.bit_length())]
    return min(lines, key=lambda line: triton.cdiv(size[0], block // line) * triton.cdiv(size[1], line))


def wgrad(
    y: Pixels, x: Fine, size: tuple[int, int], shape: tuple[int, int, int, int], groups: int, stride: int
) -> Tensor:
    """Return part [SPLITS, G, O, KH KW C], the partial sums of a weight gradient.

    Summed over splits, it is the sum over all coarse pixels of y times the values that taps read from the
    fine x. ``size``: the size of y. ``shape``: O, C, KH, KW; a C that exceeds the step of x is a window. y
    and x hold G groups of images, one after another.
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
    """Return the convolution [N, O, *size] of y [N, C, H, W] by w [P, coarse channels, k, k, fine ones]."""
    stack, p = stack_bias(bias), form.padding
    if form.transposed:
        return scatter(y, w, size, form, stack)
    if form.contracts:
        frame = Frame(p, p, y.shape[2] + 2 * p, y.shape[3] + 2 * p)
        pixels = embed(y, frame, reflect=False, dtype=y.dtype, step=y.shape[1]) if p else Pixels.of(y)
        return contract(pixels, contract_weight(w), w.shape[1], form.kernel, size, stack)
    return gather(Fine.of(y, form), w, size, form.stride, stack)


def embedded_gradient(g: Tensor, form: Form) -> Fine:
    """Return the gradient g (of few channels, at stride 1) with zeros around it.

    The zeros extend as far as the taps of the input's pixels reach.
    """
    k, margin = form.kernel, form.kernel - 1 - form.padding
    frame = Frame(margin, margin, g.shape[2] + 2 * margin, g.shape[3] + 2 * margin, window(k))
    return Fine(embed(g, frame, reflect=False, dtype=g.dtype, step=IMAGE), 0, True)


def fine_gradient(g: Tensor, form: Form) -> Fine | None:
    """Return the output's gradient g in the form that both other gradients read; None if they read g itself.

    It has such a form if g is the fine image, or if g has few channels and the stride is 1.
    """
    if form.contracts:
        return embedded_gradient(g, form)
    return Fine.of(g, form) if form.transposed else None


def input_gradient(g: Tensor, fine: Fine | None, w: Tensor, size: tuple[int, int], form: Form) -> Tensor:
    """Return the gradient [N, C, *size] of the input from the output's gradient g.

    ``fine``: g in another form (``fine_gradient``), if it has one.
    """
    if fine is None:
        return scatter(g, w, size, form)
    if form.transposed:
        return gather(fine, w, size, form.stride)
    return product(fine.pixels, window_weight(w, turned=True), size)


def coarse_and_fine(g: Tensor, fine: Fine | None, y: Tensor, form: Form) -> tuple[Tensor, Fine]:
    """Return the coarse image and the fine image from which a weight gradient is computed.

    They are the output's gradient g and the input y, or the other way round. ``fine``: g in another form
    (``fine_gradient``), if it has one.
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
    """Write (or add) the gradients of the ``weights`` selected by ``needs`` to ``into``, one tensor for each.

    They are computed from both images (``coarse_and_fine``). Frozen weights are skipped. Each run of adjacent
    weights that need a gradient takes one product, and one sum if their targets are equally spaced in memory.
    """
    O, C, k = coarse.shape[1], weights[0].shape[1], form.kernel
    row = window(k) * IMAGE
    shape, start, strides = (O, C, k, k), 0, (k * k * C, k * C, C, 1)
    if fine.few:
        shape, strides = (O, row, k, 1), (k * row, row, IMAGE, 1)
    if form.contracts:
        # The gradient is the image of few channels here, so the input's channels are the rows of the product,
        # and the taps run in reverse.
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
    """Return the sums of g [N, O, H, W] (channels_last) over pixels and images, [P, O] in fp32."""
    N, O, H, W = g.shape
    return g.permute(0, 2, 3, 1).view(P, N // P * H * W, O).sum(1, dtype=torch.float32)
