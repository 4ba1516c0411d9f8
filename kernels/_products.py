"""The matrix products of the convolutions: their tiles, and what launches them. Checks nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

# The kernels register themselves.
from . import reflect_conv_triton as device_code
from ._launch import Config, chip, dry, interpreted, launch
from ._tiles import tuned
from .border_launch import Pixels
from .descriptor_launch import Rows, launch_operands
from .instance_norm_launch import Moments

REFLECT, LINEAR, FOLDED = (
    mode.value for mode in (device_code.REFLECT, device_code.LINEAR, device_code.FOLDED)
)


def precision_of(x: Tensor) -> str:
    """Return how fp32 products are made: "tf32" where torch's convolutions may use it, else "ieee"."""
    if x.dtype != torch.float32:
        return "tf32"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"  # type: ignore[attr-defined]


# --- Tiles --------------------------------------------------------------------------------------------------

Tile = tuple[int, int, int, int, int]  # BLOCK_M, BLOCK_N, BLOCK_K of 16-bit values, warps, stages


def _arch(device: torch.device) -> Literal["ampere", "hopper", "geforce"]:
    """Which list of tiles serves: the matrix instructions of Hopper and of Blackwell's data centre chips read
    operands from shared memory.

    Blackwell's other chips (12.x) have Ampere's instructions, less than half of the shared memory, and spill
    where four warps do much.
    """
    capability = chip(device).capability
    return "ampere" if capability < 90 else "hopper" if capability < 120 else "geforce"


# "ieee": no matrix instruction multiplies in IEEE fp32, so small tiles, all of it in registers.
CONV_TILES: dict[str, list[Tile]] = {
    # A whole wave of an H200 for 1. four pictures of 64 x 64 with 256 channels, 2. two of them, 3. one.
    "hopper": [(128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    # mma.sync reads operands from registers: less depth in flight.
    "ampere": [(128, 128, 32, 8, 4), (128, 256, 32, 8, 3), (128, 64, 32, 4, 4)],
    "geforce": [(128, 128, 32, 8, 4), (128, 64, 32, 8, 4), (64, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# For windows of pixels, by pointers: with two stages IEEE products spill.
WINDOW_TILES: dict[str, list[Tile]] = {**CONV_TILES, "ieee": [(64, 64, 32, 4, 3)]}
# An input gradient's fp32 operands, turned round and rounded, leave fewer registers for the sum: larger tiles
# spill.
TRANSPOSED_FP32_TILES: dict[str, list[Tile]] = {
    "hopper": [(128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    "ampere": [(128, 64, 32, 4, 4)],
    "geforce": [(128, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# An input gradient whose border is folded afterwards has 128 x 128 of eight warps spill on Ampere, by 16
# bytes (Triton 3.9).
BORDERED_TRANSPOSED_TILES: dict[str, list[Tile]] = {
    **CONV_TILES,
    "ampere": [(128, 64, 32, 4, 4), (64, 128, 32, 4, 4)],
}
WGRAD_TILES: dict[str, list[Tile]] = {
    "hopper": [(128, 256, 64, 8, 3), (128, 128, 64, 8, 3)],
    "ampere": [(128, 128, 32, 8, 4), (128, 64, 32, 8, 4)],
    "geforce": [(128, 128, 32, 8, 4), (128, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 8, 2)],
}
CONTRACT_TILES: dict[str, list[Tile]] = {
    "hopper": [(128, 16, 64, 4, 4), (256, 16, 64, 8, 3)],
    "ampere": [(128, 16, 32, 4, 4), (128, 16, 64, 8, 3)],
    "geforce": [(128, 16, 32, 4, 4), (64, 16, 32, 4, 4)],
    "ieee": [(64, 16, 32, 4, 2)],
}


def _configs(
    tiles: dict[str, list[Tile]],
    x: Tensor,
    precision: str,
    M: int,
    N: int,
    K: int,
    loads_columns: bool = True,
) -> list[Config]:
    """Return the short list of tiles for a product of M rows, N columns and a depth of K. ``loads_columns``:
    a tile of N x K is loaded.
    """

    def fit(block: int, size: int) -> int:
        return min(block, max(16, triton.next_power_of_2(size)))

    if interpreted() and not dry():
        # Its time goes by programs and steps: a few of each, whatever the size.
        m, n, k = (
            max(least, triton.next_power_of_2(size) // 4) for least, size in ((32, M), (32, N), (64, K))
        )
        return [Config((("BLOCK_M", m), ("BLOCK_N", fit(n, N)), ("BLOCK_K", fit(k, K))), 1)]
    configs, arch = [], _arch(x.device)
    for m, n, k, warps, stages in tiles["ieee" if precision == "ieee" else arch]:
        rows, columns = fit(m, M), fit(n, N)
        if rows * columns <= 8192 and precision != "ieee" and arch != "geforce":
            warps = 4
        # The smaller operand's tile is so deep that each thread of four warps has 16 bytes of it to load;
        # else there are fewer warps.
        lines = min(rows, columns) if loads_columns else rows
        depth = fit(max(k * 2, 2048 // lines) // x.element_size(), K)
        warps = min(warps, max(1, lines * depth * x.element_size() // 512))
        config = Config((("BLOCK_M", rows), ("BLOCK_N", columns), ("BLOCK_K", depth)), warps, stages)
        if config not in configs:
            configs.append(config)
    return configs


def _key(x: Tensor, *flags: Any) -> str:
    """What a choice goes by. The batch counts here, to the next power of two: it decides how many programs
    there are.
    """
    return " ".join(map(str, (str(x.dtype).removeprefix("torch."), *flags)))


def _octave(number: int) -> int:
    return triton.next_power_of_2(max(1, number))


# --- The products -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What a product does besides: see _reflect_conv_kernel."""

    mode: int = LINEAR
    pad: int = 0
    source: tuple[int, int] = (0, 0)
    transposed: bool = False
    bias: Tensor | None = None
    residual: Tensor | None = None


def product(x: Pixels, w: Tensor, size: tuple[int, int], options: Options = Options()) -> Tensor:
    """Return y [N, O, *size] in channels_last, from w [P, O, KH, KW, C] (transposed: [P, C, KH, KW, O], the
    taps turned round).
    """
    return _product(x, w, size, options, False)[0]


def product_and_moments(
    x: Pixels, w: Tensor, size: tuple[int, int], options: Options = Options()
) -> tuple[Tensor, Moments]:
    """Return what ``product`` returns, and its partial moments as stored."""
    y, moments = _product(x, w, size, options, True)
    assert moments is not None
    return y, moments


def _product(
    x: Pixels, w: Tensor, size: tuple[int, int], options: Options, stats: bool
) -> tuple[Tensor, Moments | None]:
    P, A, KH, KW, B = w.shape
    C, O = (A, B) if options.transposed else (B, A)
    H, W = size
    y = torch.empty(
        (x.N, O, H, W), dtype=x.data.dtype, device=x.data.device, memory_format=torch.channels_last
    )
    pitch = x.pitch if options.mode == LINEAR else W
    precision = precision_of(x.data)
    flags = {
        "C": C, "O": O, "XS": x.step, "KH": KH, "KW": KW, "PAD": options.pad, "MODE": options.mode,
        "TRANSPOSED": options.transposed,
        "HAS_BIAS": options.bias is not None, "RESIDUAL": options.residual is not None, "STATS": stats,
        "PRECISION": precision, "INTERPRET": interpreted() and not dry(),
    }  # fmt: skip

    def run(config: Config) -> Moments | None:
        block_m, block_n, block_k = config.constants.values()
        tiles = triton.cdiv(H * pitch, block_m)
        part = y.new_empty((x.N, 2, tiles, O), dtype=torch.float32) if stats else None
        box = (block_k, block_n) if options.transposed else (block_n, block_k)
        operands = (
            Rows(x.data, x.N * x.rows, C, x.step, (block_m, block_k)),
            Rows(w, P * A, KH * KW * B, KH * KW * B, box),
        )
        # A window of pixels is a row that overlaps the next: no descriptor has such rows.
        whole = options.mode == LINEAR and x.step >= C and C % block_k == 0 and O % 8 == 0
        sizes = (tiles, max(1, x.N // P), H, W, *options.source, pitch, x.rows, x.limit)
        args = (options.bias, options.residual, y, part, *sizes)
        launch_operands(
            "_reflect_conv_kernel",
            x.N * tiles * triton.cdiv(O, block_n),
            operands,
            args,
            flags,
            config,
            whole,
        )
        return None if part is None else Moments(part, block_m, pitch if options.mode == LINEAR else 0)

    if options.transposed and y.dtype == torch.float32:
        lists = TRANSPOSED_FP32_TILES
    elif options.transposed and options.mode == LINEAR:
        lists = BORDERED_TRANSPOSED_TILES
    else:
        lists = WINDOW_TILES if x.step < C else CONV_TILES
    configs = _configs(lists, x.data, precision, H * pitch, O, C)
    key = _key(
        x.data, options.mode, _octave(x.N), _octave(H * W), C, O, KH, KW, options.transposed, stats, precision
    )
    return y, tuned("conv", key, configs, y, run)


def contract(
    x: Pixels,
    w: Tensor,
    O: int,
    KW: int,
    size: tuple[int, int],
    bias: Tensor | None = None,
    tanh: bool = False,
) -> Tensor:
    """Return y [N, O, *size] in channels_last from w [P, KH, C, KW_P, O_P] (``contract_weight``); fp32 where
    ``tanh`` is applied.
    """
    _, KH, C, KW_P, O_P = w.shape
    H, W = size
    dtype = torch.float32 if tanh else x.data.dtype
    y = torch.empty((x.N, O, H, W), dtype=dtype, device=x.data.device, memory_format=torch.channels_last)
    precision = precision_of(x.data)
    flags = {
        "C": C, "O": O, "KH": KH, "KW": KW, "KW_P": KW_P, "O_P": O_P, "HAS_BIAS": bias is not None,
        "TANH": tanh,
        "PRECISION": precision, "INTERPRET": interpreted() and not dry(),
    }  # fmt: skip

    def run(config: Config) -> None:
        block_m, _, block_k = config.constants.values()
        tiles = triton.cdiv((H - 1) * x.pitch + W, block_m - KW + 1)
        operands = (Rows(x.data, x.N * x.rows, C, C, (block_m, block_k)),)
        sizes = (tiles, max(1, x.N // w.shape[0]), H, W, x.pitch, x.rows, x.limit)
        tile = dataclasses.replace(config, tile=(("BLOCK_M", block_m), ("BLOCK_K", block_k)))
        args = (w, bias, y, *sizes)
        launch_operands(
            "_reflect_conv_contract_kernel", x.N * tiles, operands, args, flags, tile, C % block_k == 0
        )

    key = _key(x.data, _octave(x.N), _octave(H * W), C, O, KH, KW, precision)
    tuned("contract", key, _configs(CONTRACT_TILES, x.data, precision, H * x.pitch, 16, C, False), y, run)
    return y


@dataclass(frozen=True)
class Gradient:
    """A weight gradient in parts [SPLITS, G, ...], and where in them the element (o, kh, kw, c) of each
    weight lies.
    """

    part: Tensor
    start: int
    strides: tuple[int, int, int, int]


def split_k(blocks: int, chunks: int, tile_bytes: int, sms: int) -> int:
    """Return into how many shares a sum of ``chunks`` steps is split, so that ``blocks`` tiles fill ``sms``
    multiprocessors.

    Least of: waves x steps of a program, and what the partial sums cost to write and read, in steps. A step
    (64 deep) of a 128 x 256 tile takes 0.8 us at 5 TFLOP/s a multiprocessor, in which memory moves 3.4 MB at
    4.3 TB/s.
    """

    def cost(splits: int) -> float:
        return (
            triton.cdiv(blocks * splits, sms) * triton.cdiv(chunks, splits)
            + 2 * splits * blocks * tile_bytes / 3.4e6
        )

    return min(range(1, min(chunks, 32) + 1), key=cost)


def wgrad(
    dy: Pixels, x: Pixels, shape: tuple[int, int, int, int], groups: int, first: int, limit: int
) -> Tensor:
    """Return part [SPLITS, G, O, KH KW, C], whose sum over splits is the sum over m < ``limit`` of dy[first +
    m] x[m + kh pitch + kw].

    ``shape``: O, C, KH, KW, with C over x.step a window of pixels. dy and x: G groups of images, one after
    the other.
    """
    O, C, KH, KW = shape
    precision, per = precision_of(x.data), x.N // groups
    if per == 0:
        return x.data.new_zeros((1, groups, O, KH * KW, C), dtype=torch.float32)

    def run(config: Config) -> Tensor:
        block_m, block_n, block_k = config.constants.values()
        chunks = triton.cdiv(limit, block_k)
        blocks = groups * KH * KW * triton.cdiv(O, block_m) * triton.cdiv(C, block_n)
        sms = chip(x.data.device).multiprocessors * (2 if block_m * block_n <= 128 * 128 else 1)
        splits = (
            2 if interpreted() and not dry() else split_k(blocks, per * chunks, 4 * block_m * block_n, sms)
        )
        steps = triton.cdiv(per * chunks, splits)
        part = x.data.new_empty(
            (triton.cdiv(per * chunks, steps), groups, O, KH * KW, C), dtype=torch.float32
        )
        # A window of pixels is a row that overlaps the next: no descriptor has such rows.
        pixels = x.data if x.step < C else Rows(x.data, x.N * x.rows, C, x.step, (block_k, block_n))
        operands = (Rows(dy.data, dy.N * dy.rows, O, O, (block_k, block_m)), pixels)
        args = (
            part,
            part.shape[0],
            steps,
            chunks,
            per,
            groups,
            limit,
            first,
            dy.rows,
            x.rows,
            x.limit,
            x.pitch,
        )
        flags = {
            "O": O,
            "C": C,
            "XS": x.step,
            "KH": KH,
            "KW": KW,
            "PRECISION": precision,
            "INTERPRET": interpreted() and not dry(),
        }
        # Without masks a block must end with its image.
        whole = limit % block_k == 0 and O % block_m == 0 and C % block_n == 0
        launch_operands(
            "_reflect_conv_wgrad_kernel", blocks * part.shape[0], operands, args, flags, config, whole
        )
        return part

    key = _key(x.data, _octave(per), groups, _octave(limit), O, C, KH, KW, limit % 64 == 0, precision)
    found: Tensor = tuned("wgrad", key, _configs(WGRAD_TILES, x.data, precision, O, C, limit), x.data, run)
    return found


def sum_splits(gradient: Gradient, out: Tensor, step: int, *, accumulate: bool) -> None:
    """Write (or add) the sum over splits of ``gradient`` to the weights at ``out`` [O, I, KH, KW] and each
    ``step`` elements after it.
    """
    part = gradient.part
    splits, groups = part.shape[:2]
    _, C, KH, KW = out.shape
    target = tuple(out.stride(d) for d in (0, 2, 3, 1))
    flat = (KH * KW * C, KW * C, C, 1)
    constants = {
        **dict(zip(("SO", "SH_", "SW_", "SC"), gradient.strides, strict=True)), "START": gradient.start,
        **dict(zip(("WO", "WH", "WW", "WC"), target, strict=True)), "C": C, "KH": KH, "KW": KW,
        "FLAT": gradient.start == 0 and gradient.strides == flat == target, "ACCUMULATE": accumulate,
    }  # fmt: skip
    config = Config((("BLOCK", 1024),), 4)
    args = (part, out, splits, out.numel(), step, part.stride(0), part.stride(1))
    launch("_reflect_conv_wgrad_sum_kernel", groups * triton.cdiv(out.numel(), 1024), args, constants, config)
