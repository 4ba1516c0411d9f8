"""Host side of the instance norm kernels: how a tensor is seen, which tiles it is cut into, allocation and launches. Checks nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# The kernels register themselves.
from . import instance_norm_triton as _device_code  # noqa: F401
from ._launch import Config, dry, interpreted, launch
from ._tune import choose

ACTIVATION = {"none": 0, "relu": 1, "leaky_relu": 2}


@dataclass(frozen=True)
class Scale:
    """Sizes that follow the machine. Tiles do not depend on the batch, so no image's result does."""

    programs: int  # wanted for one image by each kernel
    max_tiles: int  # partial results for one image that every consumer reads again
    small_rows: int  # pixels (of 16 channels) that the one-launch kernels hold in registers
    small_plane: int  # pixels of a plane, likewise


# 132 SMs with two to four programs each; the interpreter's sizes let small tests meet several tiles of several blocks.
_GPU = Scale(programs=256, max_tiles=128, small_rows=1024, small_plane=8192)
_INTERPRETER = Scale(programs=8, max_tiles=4, small_rows=64, small_plane=128)


def _scale() -> Scale:
    return _INTERPRETER if interpreted() and not dry() else _GPU


@dataclass(frozen=True)
class View:
    """A tensor [N, C, *spatial] as N images of S pixels with C channels innermost; planes are images of one channel."""

    N: int
    S: int
    C: int
    channels: int
    planar: bool
    H: int
    W: int

    @classmethod
    def of(cls, x: Tensor) -> View:
        N, C, S = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        planar = not x.movedim(1, -1).is_contiguous()
        H, W = (x.shape[2], x.shape[3]) if x.dim() == 4 else (S, 1)
        return cls(N * C, S, 1, C, True, H, W) if planar else cls(N, S, C, C, False, H, W)

    def lines(self, *borders: int) -> tuple[int, int]:
        """Return the height and width that a kernel walks by; one long column where no border makes it need the true ones."""
        return (self.H, self.W) if any(borders) else (self.S, 1)


def tile_configs(view: View, per_thread: int) -> list[Config]:
    """The short list for kernels that walk over rows, ``per_thread`` elements of a tensor in each thread's registers at a time.

    1. 32 channels: 64 bytes of a row, whole sectors, and many programs where there are few channels. 2. 64 channels: whole cache lines;
    half as much in each thread, because the partial results of 64 channels take registers too. 3. as 1 with twice the warps: larger
    tiles. A plane has one channel, so its tiles are long rows.
    """
    if interpreted() and not dry():
        block_c = 1 if view.planar else min(16, triton.next_power_of_2(view.C))
        return [Config((("BLOCK_S", 32), ("BLOCK_C", block_c)), 1)]
    configs = []
    for block_c, warps, elements in ((32, 4, per_thread), (64, 8, max(8, per_thread // 2)), (32, 8, per_thread)):
        block_c = 1 if view.planar else min(block_c, triton.next_power_of_2(view.C))
        config = Config((("BLOCK_S", 32 * warps * elements // block_c), ("BLOCK_C", block_c)), warps)
        if config not in configs:
            configs.append(config)
    return configs


def _split(rows: int, config: Config, c_blocks: int, max_tiles: int) -> tuple[int, int]:
    """Return into how many tiles ``rows`` are cut, and of how many blocks each is made (a power of two, so that kernels are few)."""
    block_s = config.constants["BLOCK_S"]
    wanted = min(max_tiles, max(1, _scale().programs // c_blocks), triton.cdiv(rows, block_s))
    iters = triton.next_power_of_2(triton.cdiv(triton.cdiv(rows, wanted), block_s))
    return triton.cdiv(rows, iters * block_s), iters


def _c_blocks(view: View, config: Config) -> int:
    return triton.cdiv(view.C, config.constants["BLOCK_C"])


def small_config(view: View) -> Config | None:
    """Return the tile of the one-launch kernels, None for a picture that is too large for them. 64 elements a thread at most.

    There is one: all pixels of 16 channels (a sector of 16-bit values), more channels for small pictures, so that rows are 128 bytes.
    """
    block_s = triton.next_power_of_2(view.S)
    if block_s > (_scale().small_plane if view.planar else _scale().small_rows):
        return None
    block_c = 1 if view.planar else min(triton.next_power_of_2(view.C), 64, max(16, 4096 // block_s))
    warps = min(8, max(1, block_s * block_c // 1024))
    return Config((("BLOCK_S", block_s), ("BLOCK_C", block_c)), warps)


def _key(view: View, x: Tensor, *flags: Any) -> str:
    """What a choice goes by. Not the batch: an image's bits do not depend on it. Sizes by powers of two: it is made seldom."""
    layout = "planes" if view.planar else "channels_last"
    return " ".join(map(str, (str(x.dtype).removeprefix("torch."), layout, triton.next_power_of_2(view.S), view.C, *flags)))


def _tuned(name: str, key: str, configs: list[Config], x: Tensor, run: Callable[[Config], Any]) -> Any:
    return run(choose(name, key, configs, x.device, run))


def bordered_shape(x: Tensor, border: int) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] + 2 * border, x.shape[3] + 2 * border


def packed_shape(x: Tensor) -> tuple[int, int, int]:
    """The gradient with its margins, [N, (H + 2) (W + 4), C] in memory; README.md has its layout."""
    return x.shape[0], (x.shape[2] + 2) * (x.shape[3] + 4), x.shape[1]


def empty_bordered(x: Tensor, border: int) -> Tensor:
    if border == 0:
        return torch.empty_like(x)
    return torch.empty(bordered_shape(x, border), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _affine(weight: Tensor | None, bias: Tensor | None) -> dict[str, bool]:
    return {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None}


def moments(x: Tensor) -> tuple[Tensor, int]:
    """Return the partial moments [N, 2, T, C] of x and the number of pixels in each of the T tiles."""
    view = View.of(x)

    def run(config: Config) -> tuple[Tensor, int]:
        c_blocks = _c_blocks(view, config)
        tiles, iters = _split(view.S, config, c_blocks, _scale().max_tiles)
        part = x.new_empty((view.N, 2, tiles, view.C), dtype=torch.float32)
        args = (x, part, iters, tiles, view.S, view.C)
        launch("_instance_norm_stats_kernel", view.N * c_blocks * tiles, args, {}, config)
        return part, iters * config.constants["BLOCK_S"]

    return _tuned("stats", _key(view, x), tile_configs(view, 32), x, run)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, act: str, slope: float, border: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y [N, C, H + 2 border, W + 2 border] (any rank without border), and mean and rstd [N, C] in fp32."""
    view = View.of(x)
    y = empty_bordered(x, border)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    flags = {"ACT": ACTIVATION[act], **_affine(weight, bias), "RESIDUAL": residual is not None, "PLANAR": view.planar}
    small = small_config(view) if border == 0 else None
    if small is not None:
        args = (x, weight, bias, residual, y, mean, rstd, view.S, view.C, view.channels, eps, slope)
        launch("_instance_norm_small_fwd_kernel", view.N * _c_blocks(view, small), args, flags, small)
        return y, mean, rstd
    part, rows = moments(x)
    H, W = view.lines(border)

    def run(config: Config) -> None:
        c_blocks = _c_blocks(view, config)
        tiles, iters = _split((H + 2 * border) * (W + 2 * border), config, c_blocks, 1 << 30)
        sizes = (iters, tiles, part.shape[2], rows, H, W, view.C, view.channels, eps, slope)
        args = (x, part, weight, bias, residual, y, mean, rstd, *sizes)
        constants = {**flags, "BORDER": border, "BLOCK_T": triton.next_power_of_2(part.shape[2])}
        launch("_instance_norm_apply_kernel", view.N * c_blocks * tiles, args, constants, config)

    _tuned("apply", _key(view, x, act, residual is not None, border), tile_configs(view, 16), x, run)
    return y, mean, rstd


@dataclass(frozen=True)
class Extras:
    """What the backward can do besides: read dy inside a (folded) border, write y again inside one, write dx with its margins."""

    dy_border: int = 0
    y_border: int = 0
    margins: bool = False


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
    extras: Extras = Extras(),
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return dx, and total [2, N, C]: the sums of dz and of dz * x-hat of each image and channel. Writes act(IN(x)) to ``y`` if given."""
    view = View.of(x)
    dx = x.new_empty(packed_shape(x)) if extras.margins else torch.empty_like(x)
    total = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
    flags = {"ACT": ACTIVATION[act], **_affine(weight, bias), "PLANAR": view.planar}
    small = small_config(view) if extras == Extras() and y is None else None
    if small is not None:
        args = (dy, x, weight, bias, mean, rstd, dx, total, mean.numel(), view.S, view.C, view.channels, slope)
        launch("_instance_norm_small_bwd_kernel", view.N * _c_blocks(view, small), args, flags, small)
        return dx, total
    inputs = (dy, x, weight, bias, mean, rstd)
    sums = _bwd_sums(inputs, view, flags, slope, extras)
    _bwd_apply(inputs, sums, (dx, y, total), view, flags, slope, extras)
    return dx, total


def _bwd_sums(inputs: tuple[Tensor | None, ...], view: View, flags: dict[str, Any], slope: float, extras: Extras) -> Tensor:
    x = inputs[1]
    assert x is not None
    H, W = view.lines(extras.dy_border)

    def run(config: Config) -> Tensor:
        c_blocks = _c_blocks(view, config)
        tiles, iters = _split(view.S, config, c_blocks, _scale().max_tiles)
        sums = x.new_empty((view.N, 2, tiles, view.C), dtype=torch.float32)
        args = (*inputs, sums, iters, tiles, H, W, view.C, view.channels, slope)
        constants = {**flags, "DY_BORDER": extras.dy_border}
        launch("_instance_norm_bwd_sums_kernel", view.N * c_blocks * tiles, args, constants, config)
        return sums

    # It reads two tensors and adds up two: few elements a thread, many threads.
    return _tuned("bwd_sums", _key(view, x, *flags.values(), extras.dy_border), tile_configs(view, 8), x, run)


def _bwd_apply(
    inputs: tuple[Tensor | None, ...],
    sums: Tensor,
    outputs: tuple[Tensor, Tensor | None, Tensor],
    view: View,
    flags: dict[str, Any],
    slope: float,
    extras: Extras,
) -> None:
    x = inputs[1]
    assert x is not None
    H, W = view.lines(extras.dy_border, extras.y_border, extras.margins)
    tiles_in = sums.shape[2]

    def run(config: Config) -> None:
        c_blocks = _c_blocks(view, config)
        main, iters = _split((H + 2 * extras.y_border) * (W + 2 * extras.y_border), config, c_blocks, 1 << 30)
        margin = 2 * H + 2 * (W + 2) + 2 * (H + 2) if extras.margins else 0
        tiles = main + triton.cdiv(margin, iters * config.constants["BLOCK_S"])
        sizes = (view.N * view.C, iters, main, tiles, tiles_in, H, W, view.C, view.channels, slope)
        constants = {
            **flags,
            "DY_BORDER": extras.dy_border,
            "Y_BORDER": extras.y_border,
            "RECOMPUTE": outputs[1] is not None,
            "MARGINS": extras.margins,
            "BLOCK_T": triton.next_power_of_2(tiles_in),
        }
        args = (*inputs, sums, *outputs, *sizes)
        launch("_instance_norm_bwd_apply_kernel", view.N * c_blocks * tiles, args, constants, config)

    _tuned("bwd_apply", _key(view, x, *flags.values(), outputs[1] is not None, extras), tile_configs(view, 16), x, run)


def fold_border_(dy: Tensor, border: int) -> Tensor:
    """Add the gradient of the reflected border of dy [N, C, H + 2b, W + 2b] (channels_last) to the pixels that it copies, in place."""
    N, C, H, W = dy.shape[0], dy.shape[1], dy.shape[2] - 2 * border, dy.shape[3] - 2 * border
    block_c = min(64, triton.next_power_of_2(C))
    block_s = 32 if _scale() is _INTERPRETER else 16
    config = Config((("BLOCK_S", block_s), ("BLOCK_C", block_c)), 4 if block_c >= 32 else 1)
    tiles = triton.cdiv(2 * border * (W + H), block_s)
    grid = N * triton.cdiv(C, block_c) * tiles
    launch("_fold_border_kernel", grid, (dy, tiles, H, W, C), {"BORDER": border}, config)
    return dy


def reflect_pad(x: Tensor, border: int) -> Tensor:
    """Return x [N, C, H, W] (channels_last) with ``border`` reflected pixels on each side."""
    view = View.of(x)
    y = empty_bordered(x, border)
    rows = (view.H + 2 * border) * (view.W + 2 * border)

    def run(config: Config) -> None:
        c_blocks = _c_blocks(view, config)
        tiles, iters = _split(rows, config, c_blocks, 1 << 30)
        args = (x, y, iters, tiles, view.H, view.W, view.C)
        launch("_reflect_pad_kernel", view.N * c_blocks * tiles, args, {"BORDER": border}, config)

    _tuned("reflect_pad", _key(view, x, border), tile_configs(view, 32), x, run)
    return y
