"""Triton kernel that loads one tile through a tensor descriptor: how a process learns whether the driver's
descriptors serve.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel


@kernel
@triton.jit(do_not_specialize=["ROW", "COLUMN"])
def _descriptor_copy_kernel(x, y_ptr, ROW, COLUMN, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """y [BLOCK_R, BLOCK_C] = the tile of x, a tensor descriptor, from (ROW, COLUMN) on; zeros past the last
    row.
    """
    tile = x.load([ROW, COLUMN])
    offs = tl.arange(0, BLOCK_R)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(y_ptr + offs, tile)
