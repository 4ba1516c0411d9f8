"""Launch the matrix products of the convolutions. Arguments are not checked."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

# Importing the kernels registers them.
from . import reflect_conv_triton as device_code
from ._launch import Config, chip, interpreting, launch
from ._layout import empty_channels_last
from ._product_tiles import (
    BORDERED_TRANSPOSED_TILES,
    CONTRACT_TILES,
    CONV_TILES,
    TRANSPOSED_FP32_TILES,
    WGRAD_TILES,
    WINDOW_TILES,
    Tile,
    octave,
    product_configs,
    product_key,
)
from ._tiles import tuned
from .border_launch import Pixels
from .descriptor_launch import Rows, launch_operands
from .instance_norm_launch import Moments

REFLECT = device_code.REFLECT.value
LINEAR = device_code.LINEAR.value
FOLDED = device_code.FOLDED.value


def precision_of(x: Tensor) -> str:
    """Return "ieee" if x is fp32 and PyTorch's convolutions may not use TF32, otherwise "tf32"."""
    if x.dtype != torch.float32:
        return "tf32"
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if allowed else "ieee"


# --- The products -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """Options of a matrix product; see ``_reflect_conv_kernel``."""

    mode: int = LINEAR
    pad: int = 0
    source: tuple[int, int] = (0, 0)
    transposed: bool = False
    bias: Tensor | None = None
    residual: Tensor | None = None


def product(x: Pixels, w: Tensor, size: tuple[int, int], options: Options = Options()) -> Tensor:
    """Convolve x with w [P, O, KH, KW, C] as a matrix product, and return y [N, O, *size] in channels_last.

    With ``options.transposed``, w is [P, C, KH, KW, O] and its taps are rotated by 180 degrees.
    """
    return _product(x, w, size, options, False)[0]


def product_and_moments(
    x: Pixels, w: Tensor, size: tuple[int, int], options: Options = Options()
) -> tuple[Tensor, Moments]:
    """Return the result of ``product``, and the partial moments of its values as stored."""
    y, moments = _product(x, w, size, options, True)
    assert moments is not None
    return y, moments


def _tiles_of(x: Pixels, channels: int, options: Options) -> dict[str, list[Tile]]:
    """Return the candidate tiles, by architecture, for a product that sums over ``channels`` of x."""
    if options.transposed and x.data.dtype == torch.float32:
        return TRANSPOSED_FP32_TILES
    if options.transposed and options.mode == LINEAR:
        return BORDERED_TRANSPOSED_TILES
    return WINDOW_TILES if x.step < channels else CONV_TILES


def _product(
    x: Pixels, w: Tensor, size: tuple[int, int], options: Options, stats: bool
) -> tuple[Tensor, Moments | None]:
    _, O, KH, KW, C = w.shape
    if options.transposed:
        C, O = O, C
    H, W = size
    y = empty_channels_last(x.data, (x.N, O, H, W))
    rows = H * x.pitch if options.mode == LINEAR else H * W
    precision = precision_of(x.data)
    configs = product_configs(_tiles_of(x, C, options), x.data, precision, rows, O, C)
    shape = (options.mode, octave(x.N), octave(H * W), C, O, KH, KW)
    key = product_key(x.data, *shape, options.transposed, stats, precision)
    run = functools.partial(_launch_product, x, w, y, options, stats)
    return y, tuned("conv", key, configs, y, run)


def _launch_product(
    x: Pixels, w: Tensor, y: Tensor, options: Options, stats: bool, config: Config
) -> Moments | None:
    """Write the product to y. If ``stats``, return the partial moments of the stored values."""
    P, A, KH, KW, B = w.shape
    _, O, H, W = y.shape
    block_m, block_n, block_k = config.constants.values()
    if options.transposed:
        C, box = A, (block_k, block_n)
    else:
        C, box = B, (block_n, block_k)
    linear = options.mode == LINEAR
    pitch = x.pitch if linear else W
    tiles = triton.cdiv(H * pitch, block_m)
    moments = None
    if stats:
        part = y.new_empty((x.N, 2, tiles, O), dtype=torch.float32)
        moments = Moments(part, block_m, pitch if linear else 0)
    operands = (
        Rows(x.data, x.N * x.rows, C, x.step, (block_m, block_k)),
        Rows(w, P * A, KH * KW * B, KH * KW * B, box),
    )
    sizes = (tiles, max(1, x.N // P), H, W, *options.source, pitch, x.rows, x.limit)
    args = (options.bias, options.residual, y, None if moments is None else moments.part, *sizes)
    flags = {
        "C": C, "O": O, "XS": x.step, "KH": KH, "KW": KW, "PAD": options.pad, "MODE": options.mode,
        "TRANSPOSED": options.transposed,
        "HAS_BIAS": options.bias is not None, "RESIDUAL": options.residual is not None, "STATS": stats,
        "PRECISION": precision_of(x.data), "INTERPRET": interpreting(),
    }  # fmt: skip
    # Windows of pixels are overlapping rows, which a descriptor cannot express.
    whole = linear and x.step >= C and C % block_k == 0 and O % 8 == 0
    grid = x.N * tiles * triton.cdiv(O, block_n)
    launch_operands("_reflect_conv_kernel", grid, operands, args, flags, config, whole)
    return moments


def contract(
    x: Pixels,
    w: Tensor,
    O: int,
    KW: int,
    size: tuple[int, int],
    bias: Tensor | None = None,
    tanh: bool = False,
) -> Tensor:
    """Convolve x, an image that includes its border, with weights that have few output channels.

    w [P, KH, C, KW_P, O_P] is a result of ``contract_weight``. Returns y [N, O, *size] in channels_last. With
    ``tanh``, y is the tanh of the convolution in fp32; otherwise it has the dtype of x.
    """
    _, KH, C, KW_P, O_P = w.shape
    H, W = size
    y = empty_channels_last(x.data, (x.N, O, H, W), torch.float32 if tanh else x.data.dtype)
    precision = precision_of(x.data)
    flags = {
        "C": C, "O": O, "KH": KH, "KW": KW, "KW_P": KW_P, "O_P": O_P, "HAS_BIAS": bias is not None,
        "TANH": tanh, "PRECISION": precision, "INTERPRET": interpreting(),
    }  # fmt: skip

    def run(config: Config) -> None:
        block_m, _, block_k = config.constants.values()
        tiles = triton.cdiv((H - 1) * x.pitch + W, block_m - KW + 1)
        operands = (Rows(x.data, x.N * x.rows, C, C, (block_m, block_k)),)
        sizes = (tiles, max(1, x.N // w.shape[0]), H, W, x.pitch, x.rows, x.limit)
        args = (w, bias, y, *sizes)
        tile = dataclasses.replace(config, tile=(("BLOCK_M", block_m), ("BLOCK_K", block_k)))
        whole = C % block_k == 0
        launch_operands("_reflect_conv_contract_kernel", x.N * tiles, operands, args, flags, tile, whole)

    configs = product_configs(CONTRACT_TILES, x.data, precision, H * x.pitch, 16, C, False)
    key = product_key(x.data, octave(x.N), octave(H * W), C, O, KH, KW, precision)
    tuned("contract", key, configs, y, run)
    return y


# --- Weight gradients ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    """The gradients of G weights as partial sums ``part`` [SPLITS, G, ...], which must still be added up.

    ``start`` and ``strides`` locate element (o, kh, kw, c) in each split and for each weight.
    """

    part: Tensor
    start: int
    strides: tuple[int, int, int, int]


def split_k(blocks: int, chunks: int, tile_bytes: int, sms: int) -> int:
    """Return the number of shares into which to split a sum of ``chunks`` steps.

    The product has ``blocks`` tiles of ``tile_bytes`` and runs on ``sms`` multiprocessors. The result
    minimises the number of waves times the steps per program, plus the cost of writing and reading the
    partial sums (counted in steps). A step (64 deep) of a 128 x 256 tile takes 0.8 us at 5 TFLOP/s per
    multiprocessor. In that time, memory moves 3.4 MB at 4.3 TB/s.
    """

    def cost(splits: int) -> float:
        work = triton.cdiv(blocks * splits, sms) * triton.cdiv(chunks, splits)
        return work + 2 * splits * blocks * tile_bytes / 3.4e6

    return min(range(1, min(chunks, 32) + 1), key=cost)


def shares_of(device: torch.device, blocks: int, chunks: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Return how many shares the sum of a weight gradient is split into, and the number of steps per share.

    The sum has ``chunks`` steps, and the gradient has ``blocks`` tiles of size ``tile``.
    """
    if interpreting():
        splits = 2
    else:
        block_m, block_n = tile
        programs = chip(device).multiprocessors
        if block_m * block_n <= 128 * 128:
            # Each multiprocessor runs two programs with such a tile at a time.
            programs *= 2
        splits = split_k(blocks, chunks, 4 * block_m * block_n, programs)
    steps = triton.cdiv(chunks, splits)
    return triton.cdiv(chunks, steps), steps


def wgrad(
    dy: Pixels, x: Pixels, shape: tuple[int, int, int, int], groups: int, first: int, limit: int
) -> Tensor:
    """Compute a weight gradient as partial sums [SPLITS, G, O, KH KW, C].

    Summed over the splits, they give the sum over m < ``limit`` of dy[first + m] x[m + kh pitch + kw].
    ``shape`` is (O, C, KH, KW). If C exceeds x.step, the C values are a window of pixels. dy and x contain G
    groups of images, one after the other.
    """
    O, C, KH, KW = shape
    per_group, precision = x.N // groups, precision_of(x.data)
    if per_group == 0:
        return x.data.new_zeros((1, groups, O, KH * KW, C), dtype=torch.float32)
    configs = product_configs(WGRAD_TILES, x.data, precision, O, C, limit)
    images = (octave(per_group), groups, octave(limit))
    key = product_key(x.data, *images, O, C, KH, KW, limit % 64 == 0, precision)
    run = functools.partial(_launch_wgrad, dy, x, shape, groups, first, limit)
    part: Tensor = tuned("wgrad", key, configs, x.data, run)
    return part


def _launch_wgrad(
    dy: Pixels,
    x: Pixels,
    shape: tuple[int, int, int, int],
    groups: int,
    first: int,
    limit: int,
    config: Config,
) -> Tensor:
    O, C, KH, KW = shape
    block_m, block_n, block_k = config.constants.values()
    per_group, chunks = x.N // groups, triton.cdiv(limit, block_k)
    blocks = groups * KH * KW * triton.cdiv(O, block_m) * triton.cdiv(C, block_n)
    shares, steps = shares_of(x.data.device, blocks, per_group * chunks, (block_m, block_n))
    part = x.data.new_empty((shares, groups, O, KH * KW, C), dtype=torch.float32)
    pixels: Tensor | Rows = x.data
    # Windows of pixels are overlapping rows, which a descriptor cannot express.
    if x.step >= C:
        pixels = Rows(x.data, x.N * x.rows, C, x.step, (block_k, block_n))
    operands = (Rows(dy.data, dy.N * dy.rows, O, O, (block_k, block_m)), pixels)
    counts = (shares, steps, chunks, per_group, groups, limit, first)
    args = (part, *counts, dy.rows, x.rows, x.limit, x.pitch)
    flags = {
        "O": O, "C": C, "XS": x.step, "KH": KH, "KW": KW,
        "PRECISION": precision_of(x.data), "INTERPRET": interpreting(),
    }  # fmt: skip
    # Without masks, a block must end where its image ends.
    whole = limit % block_k == 0 and O % block_m == 0 and C % block_n == 0
    launch_operands("_reflect_conv_wgrad_kernel", blocks * shares, operands, args, flags, config, whole)
    return part


def sum_splits(gradient: Gradient, out: Tensor, step: int, *, accumulate: bool) -> None:
    """Add up the splits of ``gradient``, and write the sums to memory, or add them if ``accumulate``.

    The sum for the first weight goes to ``out`` [O, I, KH, KW]. The sum for each further weight starts
    ``step`` elements after the one before.
    """
    part = gradient.part
    splits, groups = part.shape[:2]
    _, C, KH, KW = out.shape
    target = (out.stride(0), out.stride(2), out.stride(3), out.stride(1))
    flat = (KH * KW * C, KW * C, C, 1)
    constants = {
        **dict(zip(("SO", "SH_", "SW_", "SC"), gradient.strides, strict=True)), "START": gradient.start,
        **dict(zip(("WO", "WH", "WW", "WC"), target, strict=True)), "C": C, "KH": KH, "KW": KW,
        "FLAT": gradient.start == 0 and gradient.strides == flat == target, "ACCUMULATE": accumulate,
    }  # fmt: skip
    config = Config((("BLOCK", 1024),), 4)
    args = (part, out, splits, out.numel(), step, part.stride(0), part.stride(1))
    launch("_reflect_conv_wgrad_sum_kernel", groups * triton.cdiv(out.numel(), 1024), args, constants, config)
