"""Triton kernel that loads one tile through a tensor descriptor.

It is launched to find out whether tensor descriptors work with the installed driver.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel


@kernel
@triton.jit(do_not_specialize=["ROW", "COLUMN"])
def _descriptor_copy_kernel(x, y_ptr, ROW, COLUMN, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Copy the tile of x (a tensor descriptor) that begins at (ROW, COLUMN) to y [BLOCK_R, BLOCK_C].

    Elements past the last row are zeros.
    """
    tile = x.load([ROW, COLUMN])
    offs = tl.arange(0, BLOCK_R)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(y_ptr + offs, tile)
