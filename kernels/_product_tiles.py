"""Candidate tile sizes for the convolutions' matrix products, and the keys under which choices are stored.

The candidates depend on the architecture of the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import Config, chip, interpreting

Tile = tuple[int, int, int, int, int]  # BLOCK_M, BLOCK_N, BLOCK_K of 16-bit values, warps, stages


def _arch(device: torch.device) -> str:
    """Return the architecture of ``device`` under which the tables below list their tiles.

    The matrix instructions of Hopper and of Blackwell's data centre chips read operands from shared memory.
    Blackwell's other chips (12.x) have Ampere's instructions and less than half of the shared memory, and
    their registers spill if four warps do a lot of work.
    """
    capability = chip(device).capability
    if capability < 90:
        return "ampere"
    if capability < 120:
        return "hopper"
    return "geforce"


# "ieee": no matrix instruction multiplies in IEEE fp32, so tiles are small and stay in registers.
CONV_TILES: dict[str, list[Tile]] = {
    # Each tile makes one full wave on an H200 for images of 64 x 64 with 256 channels: the first for four
    # images, the second for two and the third for one.
    "hopper": [(128, 256, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    # mma.sync reads operands from registers, so these tiles are less deep.
    "ampere": [(128, 128, 32, 8, 4), (128, 256, 32, 8, 3), (128, 64, 32, 4, 4)],
    "geforce": [(128, 128, 32, 8, 4), (128, 64, 32, 8, 4), (64, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# For windows of pixels, which are read through pointers. With two stages, IEEE products would spill.
WINDOW_TILES: dict[str, list[Tile]] = {**CONV_TILES, "ieee": [(64, 64, 32, 4, 3)]}
# The fp32 operands of an input gradient are transposed and rounded, which leaves fewer registers for the sum:
# larger tiles would spill.
TRANSPOSED_FP32_TILES: dict[str, list[Tile]] = {
    "hopper": [(128, 128, 64, 8, 4), (64, 128, 64, 4, 4)],
    "ampere": [(128, 64, 32, 4, 4)],
    "geforce": [(128, 64, 32, 8, 4)],
    "ieee": [(64, 64, 32, 4, 2)],
}
# For input gradients whose border is folded afterwards. A tile of 128 x 128 with eight warps would spill 16
# bytes on Ampere (Triton 3.9).
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
    """Return ``block``, or a smaller power of two (at least 16) if that is enough for ``size``."""
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
    """Return the candidate configurations for a matrix product with M rows, N columns and depth K.

    ``loads_columns`` tells whether the kernel loads tiles of the N x K operand too.
    """
    if interpreting():
        # Interpreting takes longer the more programs and steps there are, so use a few of each for any size.
        columns, depth = _fit(_quarter(N, 32), N), _fit(_quarter(K, 64), K)
        return [Config((("BLOCK_M", _quarter(M, 32)), ("BLOCK_N", columns), ("BLOCK_K", depth)), 1)]
    configs: list[Config] = []
    arch = _arch(x.device)
    kind = "ieee" if precision == "ieee" else arch
    for m, n, k, warps, stages in tiles[kind]:
        rows, columns = _fit(m, M), _fit(n, N)
        if rows * columns <= 8192 and kind in ("ampere", "hopper"):
            warps = 4
        # Make the smaller operand's tile so deep that each thread of four warps loads 16 bytes of it. If K is
        # too small for that, use fewer warps.
        lines = min(rows, columns) if loads_columns else rows
        depth = _fit(max(k * 2, 2048 // lines) // x.element_size(), K)
        warps = min(warps, max(1, lines * depth * x.element_size() // 512))
        config = Config((("BLOCK_M", rows), ("BLOCK_N", columns), ("BLOCK_K", depth)), warps, stages)
        if config not in configs:
            configs.append(config)
    return configs


def product_key(x: Tensor, *flags: Any) -> str:
    """Return the key under which the chosen configuration of a matrix product is stored.

    ``flags`` include the batch size, rounded up to a power of two, because it determines the number of
    programs.
    """
    return " ".join(map(str, (str(x.dtype).removeprefix("torch."), *flags)))


def octave(number: int) -> int:
    """Return ``number`` rounded up to a power of two (0 gives 1)."""
    return triton.next_power_of_2(max(1, number))
