"""Divide tensors into tiles for the kernels that walk over rows.

This is host code, shared by the launchers. Arguments are not checked.
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
    """Sizes from which tiles are derived, for a GPU or for Triton's interpreter.

    Tiles do not depend on the batch size, so the result for an image does not either.
    """

    programs: int  # target for one image, in each kernel
    max_tiles: int  # limit on partial results per image, all of which every consumer reads
    small_rows: int  # pixels (of 16 channels) that the one-launch kernels hold in registers
    small_plane: int  # pixels of a plane that they hold in registers


# 132 SMs with two to four programs each. The interpreter's sizes are small, so that even small tests have
# several tiles of several blocks.
GPU = Scale(programs=256, max_tiles=128, small_rows=1024, small_plane=8192)
INTERPRETER = Scale(programs=8, max_tiles=4, small_rows=64, small_plane=128)


def scale() -> Scale:
    return INTERPRETER if interpreting() else GPU


@dataclass(frozen=True)
class View:
    """A tensor [N, C, *spatial], viewed as N images of S pixels with C channels innermost.

    If it is ``planar`` (contiguous planes), each plane counts as an image of one channel. ``channels`` is the
    tensor's own number of channels.
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
        """Return the height and width of the image that a kernel walks over.

        If all ``borders`` are 0, no kernel needs the true ones, and the image is treated as one column.
        """
        if any(borders):
            return self.H, self.W
        return self.S, 1

    def channel_block(self, limit: int) -> int:
        """Return the number of channels in a tile: at most ``limit``, and 1 for planes."""
        return 1 if self.planar else min(limit, triton.next_power_of_2(self.C))


def tile_configs(view: View, per_thread: int) -> list[Config]:
    """Return the candidate configurations for kernels that walk over rows.

    ``per_thread`` is the number of elements of a tensor that each thread holds in registers at a time. The
    candidates are:

    1. 32 channels. These are 64 bytes of a row and thus whole sectors, and there are many programs even with
       few channels.
    2. 64 channels, which are whole cache lines. Each thread has half as many elements, because the partial
       results of 64 channels take registers too.
    3. Like 1, but with twice the warps and therefore larger tiles.

    A plane has only one channel, so its tiles are long rows.
    """
    if interpreting():
        return [Config((("BLOCK_S", 32), ("BLOCK_C", view.channel_block(16))), 1)]
    configs = []
    half = max(8, per_thread // 2)
    for limit, warps, elements in ((32, 4, per_thread), (64, 8, half), (32, 8, per_thread)):
        block_c = view.channel_block(limit)
        config = Config((("BLOCK_S", 32 * warps * elements // block_c), ("BLOCK_C", block_c)), warps)
        if config not in configs:
            configs.append(config)
    return configs


def split(rows: int, config: Config, c_blocks: int, max_tiles: int) -> tuple[int, int]:
    """Return the number of tiles into which to divide ``rows``, and the number of blocks in each tile.

    The number of blocks is a power of two, so that few kernels are compiled.
    """
    block_s = config.constants["BLOCK_S"]
    tiles = min(max_tiles, max(1, scale().programs // c_blocks), triton.cdiv(rows, block_s))
    iters = triton.next_power_of_2(triton.cdiv(triton.cdiv(rows, tiles), block_s))
    return triton.cdiv(rows, iters * block_s), iters


def c_blocks_of(view: View, config: Config) -> int:
    return triton.cdiv(view.C, config.constants["BLOCK_C"])


def small_config(view: View) -> Config | None:
    """Return the configuration of the one-launch kernels, or None if an image is too large for them.

    There is only one candidate. Its tile has all pixels of 16 channels (a sector of 16-bit values), or of
    more channels if images are small, so that rows have 128 bytes. A thread holds at most 64 elements.
    """
    block_s = triton.next_power_of_2(view.S)
    largest = scale().small_plane if view.planar else scale().small_rows
    if block_s > largest:
        return None
    block_c = view.channel_block(min(64, max(16, 4096 // block_s)))
    warps = min(8, max(1, block_s * block_c // 1024))
    return Config((("BLOCK_S", block_s), ("BLOCK_C", block_c)), warps)


def key_of(view: View, x: Tensor, *flags: Any) -> str:
    """Return the key under which the chosen configuration for a tensor is stored.

    The key does not include the batch size, so that the bits of an image do not depend on the batch. The
    image size is rounded up to a power of two, so that few choices have to be made.
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
