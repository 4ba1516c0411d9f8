"""Tiles for the matrix products of the convolutions, by architecture, and the keys of choices among them."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import Config, chip, interpreting

Tile = tuple[int, int, int, int, int]  # BLOCK_M, BLOCK_N, BLOCK_K of 16-bit values, warps, stages


def _arch(device: torch.device) -> str:
    """Return the name of the list of tiles for ``device``.

    The matrix instructions of Hopper and of Blackwell's data centre chips read operands from shared memory.
    Blackwell's other chips (12.x) have Ampere's instructions and less than half of the shared memory, and
    they spill if four warps do a lot of work.
    """
    capability = chip(device).capability
    if capability < 90:
        return "ampere"
    if capability < 120:
        return "hopper"
    return "geforce"


# "ieee": no matrix instruction multiplies in IEEE fp32, so tiles are small and stay in registers.
CONV_TILES: dict[str, list[Tile]] = {
    # A full wave of an H200 for 1. four images of 64 x 64 with 256 channels, 2. two of them, 3. one.
    "hopper": [(128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    # mma.sync reads operands from registers, so less depth is in flight.
    "ampere": [(128, 128, 32, 8, 4), (128, 256, 32, 8, 3), (128, 64, 32, 4, 4)],
    "geforce": [(128, 128, 32, 8, 4), (128, 64, 32, 8, 4), (64, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# For windows of pixels, read through pointers. With two stages, IEEE products spill.
WINDOW_TILES: dict[str, list[Tile]] = {**CONV_TILES, "ieee": [(64, 64, 32, 4, 3)]}
# The fp32 operands of an input gradient are transposed and rounded, which leaves fewer registers for the sum:
# larger tiles spill.
TRANSPOSED_FP32_TILES: dict[str, list[Tile]] = {
    "hopper": [(128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    "ampere": [(128, 64, 32, 4, 4)],
    "geforce": [(128, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# For an input gradient whose border is folded afterwards, 128 x 128 with eight warps spills on Ampere, by 16
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


def _fit(block: int, size: int) -> int:
    """Return ``block``, or a smaller power of two if that is enough for ``size``, but at least 16."""
    return min(block, max(16, triton.next_power_of_2(size)))


def _quarter(size: int, least: int) -> int:
    return max(least, triton.next_power_of_2(size) // 4)


def product_configs(
    tiles: dict[str, list[Tile]],
    x: Tensor,
    precision: str,
    M: int,
    N: int,
    K: int,
    loads_columns: bool = True,
) -> list[Config]:
    """Return the short list of tiles for a product of M rows, N columns and a depth of K.

    ``loads_columns``: whether the kernel loads a tile of N x K.
    """
    if interpreting():
        # The interpreter's time grows with programs and steps: use a few of each, whatever the size.
        columns, depth = _fit(_quarter(N, 32), N), _fit(_quarter(K, 64), K)
        return [Config((("BLOCK_M", _quarter(M, 32)), ("BLOCK_N", columns), ("BLOCK_K", depth)), 1)]
    configs: list[Config] = []
    arch = _arch(x.device)
    kind = "ieee" if precision == "ieee" else arch
    for m, n, k, warps, stages in tiles[kind]:
        rows, columns = _fit(m, M), _fit(n, N)
        if rows * columns <= 8192 and kind in ("ampere", "hopper"):
            warps = 4
        # The smaller operand's tile is deep enough for each thread of four warps to load 16 bytes of it.
        # Otherwise there are fewer warps.
        lines = min(rows, columns) if loads_columns else rows
        depth = _fit(max(k * 2, 2048 // lines) // x.element_size(), K)
        warps = min(warps, max(1, lines * depth * x.element_size() // 512))
        config = Config((("BLOCK_M", rows), ("BLOCK_N", columns), ("BLOCK_K", depth)), warps, stages)
        if config not in configs:
            configs.append(config)
    return configs


def product_key(x: Tensor, *flags: Any) -> str:
    """Return the key under which a choice is stored.

    ``flags`` include the batch, rounded up to a power of two, because it determines the number of programs.
    """
    return " ".join(map(str, (str(x.dtype).removeprefix("torch."), *flags)))


def octave(number: int) -> int:
    """Return ``number`` rounded up to a power of two, 1 for 0."""
    return triton.next_power_of_2(max(1, number))
