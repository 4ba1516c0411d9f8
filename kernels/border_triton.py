"""Triton kernels for image borders: copy images into larger buffers, and apply the adjoint of reflection.

The rest of a buffer is filled with the image's reflection or with zeros. Memory is [N, S, C] (channels_last).
README.md describes the adjoint, with a worked example.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel
from ._math import load_pixels, load_tile, locate, reflect, store_tile

COUNTS = ["ITERS", "TILES", "TOP", "LEFT", "LINES", "PITCH", "ROWS"]


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _embed_kernel(
    x_ptr, tanh_ptr, y_ptr, ITERS, TILES, H, W, C, TOP, LEFT, LINES, PITCH, ROWS,
    STEP: tl.constexpr, REFLECT: tl.constexpr, TANH: tl.constexpr, WIDE: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Copy x [N, H W, C] into y [N, ROWS, STEP], surrounded by its reflection (REFLECT) or by zeros.

    y has LINES lines of PITCH pixels, and x begins at pixel (TOP, LEFT). Rows after the lines and channels
    from C on are zero. If TANH, x is multiplied by 1 - tanh^2, the derivative of a tanh whose output is at
    tanh_ptr.
    """
    n, t, offs_c, mask_c = locate(TILES, STEP, BLOCK_C)
    has_c = offs_c < C
    for i in range(ITERS):
        k = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        h, w = k // PITCH - TOP, k % PITCH - LEFT
        inside = k < LINES * PITCH
        if REFLECT:
            h, w = reflect(h, H), reflect(w, W)
        else:
            inside &= (h >= 0) & (h < H) & (w >= 0) & (w < W)
        rows = h * W + w
        tile = load_pixels(x_ptr + n * H * W * C, rows, inside, offs_c, has_c, C, WIDE)
        if TANH:
            tanh = load_pixels(tanh_ptr + n * H * W * C, rows, inside, offs_c, has_c, C, WIDE)
            tile *= 1.0 - tanh * tanh
        store_tile(y_ptr + n * ROWS * STEP, k, k < ROWS, offs_c, mask_c, STEP, tile)


@triton.jit
def _sources(i, SIZE, BORDER: tl.constexpr, which: tl.constexpr):
    """Return the padded index of copy ``which`` of index ``i``, and whether that copy exists.

    Copy 0 is the index itself; copies 1 and 2 are its reflections.
    """
    if which == 0:
        place, exists = i + BORDER, i >= 0
    elif which == 1:
        place, exists = BORDER - i, (i >= 1) & (i <= BORDER)
    else:
        place, exists = 2 * (SIZE - 1) - i + BORDER, (i <= SIZE - 2) & (i >= SIZE - 1 - BORDER)
    return place, exists


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _fold_kernel(
    y_ptr, x_ptr, ITERS, TILES, H, W, C, BORDER: tl.constexpr, WIDE: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr
):  # fmt: skip
    """Add up all copies of each pixel in y [N, (H + 2B) (W + 2B), C], and write the sums to x [N, H W, C].

    The copies of a pixel are the pixel itself and its reflections in the border of B pixels.
    """
    n, t, offs_c, mask_c = locate(TILES, C, BLOCK_C)
    WP = W + 2 * BORDER
    y_ptr += n * (H + 2 * BORDER) * WP * C
    for i in range(ITERS):
        k = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        mask_s = k < H * W
        total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
        for j in tl.static_range(9):
            hp, has_row = _sources(k // W, H, BORDER, j // 3)
            wp, has_col = _sources(k % W, W, BORDER, j % 3)
            total += load_pixels(y_ptr, hp * WP + wp, mask_s & has_row & has_col, offs_c, mask_c, C, WIDE)
        tl.store(
            x_ptr + (n * H * W + k)[:, None] * C + offs_c[None, :],
            total.to(x_ptr.dtype.element_ty),
            mask_s[:, None] & mask_c[None, :],
        )


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _fold_border_kernel(
    dy_ptr, TILES, H, W, C, BORDER: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Add the gradient of each reflected border pixel to the pixel that it copies, in place.

    dy is [N, H + 2B, W + 2B, C]. The programs walk over the 2B (W + H) receiving pixels: B rows or columns at
    each side of the image, starting one pixel away from its edge. Only inner pixels are written, and only
    border pixels and the pixel being written are read, so the order does not matter.
    """
    n, t, offs_c, mask_c = locate(TILES, C, BLOCK_C)
    k = t * BLOCK_S + tl.arange(0, BLOCK_S)
    in_rows = k < 2 * BORDER * W
    k_col = k - 2 * BORDER * W
    line = tl.where(in_rows, k // W, k_col % (2 * BORDER))
    size = tl.where(in_rows, H, W)
    line = tl.where(line < BORDER, line + 1, size - 2 - (line - BORDER))
    # In a small image, both sides can reach the same line, and a pixel in a receiving column can also be in
    # a receiving row. Each pixel must be handled only once.
    far = tl.where(in_rows, k // W, k_col % (2 * BORDER)) >= BORDER
    once = ~(far & (line <= BORDER) & (line >= 1))
    h = tl.where(in_rows, line, k_col // (2 * BORDER))
    col = tl.where(in_rows, k % W, line)
    row_receives = ((h >= 1) & (h <= BORDER)) | ((h <= H - 2) & (h >= H - 1 - BORDER))
    mask_s = (k < 2 * BORDER * (W + H)) & once & (in_rows | ~row_receives)
    WP = W + 2 * BORDER
    dy_ptr += n * (H + 2 * BORDER) * WP * C
    total = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for i in tl.static_range(9):
        hp, has_row = _sources(h, H, BORDER, i // 3)
        wp, has_col = _sources(col, W, BORDER, i % 3)
        total += load_tile(dy_ptr, hp * WP + wp, mask_s & has_row & has_col, offs_c, mask_c, C)
    store_tile(dy_ptr, (h + BORDER) * WP + col + BORDER, mask_s, offs_c, mask_c, C, total)
