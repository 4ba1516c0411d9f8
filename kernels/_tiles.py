"""How tensors are seen and cut into tiles by the kernels that walk over rows: host side, shared by the
launchers. Checks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import Config, interpreting
from ._layout import empty_channels_last
from ._tune import choose


@dataclass(frozen=True)
class Scale:
    """Sizes that follow the machine. Tiles do not depend on the batch, so no image's result does."""

    programs: int  # wanted for one image by each kernel
    max_tiles: int  # partial results for one image that every consumer reads again
    small_rows: int  # pixels (of 16 channels) that the one-launch kernels hold in registers
    small_plane: int  # pixels of a plane, likewise


# 132 SMs with two to four programs each; the interpreter's sizes let small tests meet several tiles of
# several blocks.
GPU = Scale(programs=256, max_tiles=128, small_rows=1024, small_plane=8192)
INTERPRETER = Scale(programs=8, max_tiles=4, small_rows=64, small_plane=128)


def scale() -> Scale:
    return INTERPRETER if interpreting() else GPU


@dataclass(frozen=True)
class View:
    """A tensor [N, C, *spatial] as N images of S pixels with C channels innermost; planes are images of one
    channel.
    """

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
        if planar:
            return cls(N * C, S, 1, C, True, H, W)
        return cls(N, S, C, C, False, H, W)

    def lines(self, *borders: int) -> tuple[int, int]:
        """Return the height and width that a kernel walks by; one long column where no border makes it need
        the true ones.
        """
        if any(borders):
            return self.H, self.W
        return self.S, 1

    def channel_block(self, most: int) -> int:
        """Return how many channels a tile has: up to ``most``, one of a plane."""
        return 1 if self.planar else min(most, triton.next_power_of_2(self.C))


def tile_configs(view: View, per_thread: int) -> list[Config]:
    """The short list for kernels that walk over rows, ``per_thread`` elements of a tensor in each thread's
    registers at a time.

    1. 32 channels: 64 bytes of a row, whole sectors, and many programs where there are few channels. 2. 64
    channels: whole cache lines; half as much in each thread, because the partial results of 64 channels take
    registers too. 3. as 1 with twice the warps: larger tiles. A plane has one channel, so its tiles are long
    rows.
    """
    if interpreting():
        return [Config((("BLOCK_S", 32), ("BLOCK_C", view.channel_block(16))), 1)]
    configs = []
    half = max(8, per_thread // 2)
    for most, warps, elements in ((32, 4, per_thread), (64, 8, half), (32, 8, per_thread)):
        block_c = view.channel_block(most)
        config = Config((("BLOCK_S", 32 * warps * elements // block_c), ("BLOCK_C", block_c)), warps)
        if config not in configs:
            configs.append(config)
    return configs


def split(rows: int, config: Config, c_blocks: int, max_tiles: int) -> tuple[int, int]:
    """Return into how many tiles ``rows`` are cut, and of how many blocks each is made (a power of two, so
    that kernels are few).
    """
    block_s = config.constants["BLOCK_S"]
    wanted = min(max_tiles, max(1, scale().programs // c_blocks), triton.cdiv(rows, block_s))
    iters = triton.next_power_of_2(triton.cdiv(triton.cdiv(rows, wanted), block_s))
    return triton.cdiv(rows, iters * block_s), iters


def c_blocks_of(view: View, config: Config) -> int:
    return triton.cdiv(view.C, config.constants["BLOCK_C"])


def small_config(view: View) -> Config | None:
    """Return the tile of the one-launch kernels, None for an image that is too large for them. 64 elements a
    thread at most.

    There is one: all pixels of 16 channels (a sector of 16-bit values), more channels for small images, so
    that rows are 128 bytes.
    """
    block_s = triton.next_power_of_2(view.S)
    largest = scale().small_plane if view.planar else scale().small_rows
    if block_s > largest:
        return None
    block_c = view.channel_block(min(64, max(16, 4096 // block_s)))
    warps = min(8, max(1, block_s * block_c // 1024))
    return Config((("BLOCK_S", block_s), ("BLOCK_C", block_c)), warps)


def key_of(view: View, x: Tensor, *flags: Any) -> str:
    """What a choice goes by. Not the batch: an image's bits do not depend on it. Sizes by powers of two: it
    is made seldom.
    """
    dtype = str(x.dtype).removeprefix("torch.")
    layout = "planes" if view.planar else "channels_last"
    return " ".join(map(str, (dtype, layout, triton.next_power_of_2(view.S), view.C, *flags)))


def tuned(name: str, key: str, configs: list[Config], x: Tensor, run: Callable[[Config], Any]) -> Any:
    return run(choose(name, key, configs, x.device, run))


def bordered_shape(x: Tensor, border: int) -> tuple[int, int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] + 2 * border, x.shape[3] + 2 * border


def empty_bordered(x: Tensor, border: int) -> Tensor:
    if border == 0:
        return torch.empty_like(x)
    return empty_channels_last(x, bordered_shape(x, border))
