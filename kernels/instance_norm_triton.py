"""Triton kernels of instance norm (device code). The contract and checks are in instance_norm.py.

Memory is [N, S, C] (channels_last): the S pixels of an image one after another, with channels innermost. A
tensor of planes ([N, C, S] in memory) is treated as N * C images of one channel (PLANAR: C is 1, and CHANNELS
is the number of channels). README.md derives the passes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel
from ._math import (
    activate,
    activation_gradient,
    combine_lanes,
    combine_tiles,
    inverse_deviation,
    load_affine,
    load_tile,
    locate,
    reflect,
    store_tile,
    tile_moments,
)

# Arguments such as the number of tiles. Kernels are not specialised for them, so a new image size needs no
# compilation.
COUNTS = ["ITERS", "TILES", "T", "ROWS", "PITCH", "MAIN", "NC", "CHANNELS"]


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_stats_kernel(
    x_ptr, part_ptr, ITERS, T, S, C, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Compute the mean and M2 of each tile of ITERS * BLOCK_S pixels, and write them to part [N, 2, T, C].

    Each lane uses Welford's update, and Chan's formula combines the lanes.
    """
    n, t, offs_c, mask_c = locate(T, C, BLOCK_C)
    mean = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    m2 = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    count = tl.zeros([BLOCK_S], tl.float32)
    for i in range(ITERS):
        rows = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        mask_s = rows < S
        x = load_tile(x_ptr + n * S * C, rows, mask_s, offs_c, mask_c, C)

        delta = tl.where(mask_s[:, None], x - mean, 0.0)
        mean += delta * (1.0 / (i + 1))
        m2 += delta * (x - mean)
        count += mask_s.to(tl.float32)

    first = tl.sum(tl.where((tl.arange(0, BLOCK_S) == 0)[:, None], mean, 0.0), 0)
    mean, m2 = combine_lanes(count[:, None], mean, m2, first)
    offs = (n * 2 * T + t) * C + offs_c
    tl.store(part_ptr + offs, mean, mask=mask_c)
    tl.store(part_ptr + T * C + offs, m2, mask=mask_c)


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_apply_kernel(
    x_ptr, part_ptr, w_ptr, b_ptr, res_ptr, y_ptr, mean_ptr, rstd_ptr, ITERS, TILES, T, ROWS, PITCH, H, W, C,
    CHANNELS, eps, slope,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    BORDER: tl.constexpr,
    PLANAR: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write y = act(IN(x)), and mean and rstd [N, C], which are computed from the T partial moments.

    If RESIDUAL, a residual is added to y. y has BORDER reflected pixels on each side.
    """
    n, t, offs_c, mask_c = locate(TILES, C, BLOCK_C)
    mean, variance = combine_tiles(part_ptr, n, T, H, W, C, ROWS, PITCH, offs_c, mask_c, BLOCK_T)
    rstd = inverse_deviation(variance, eps)
    w, b = load_affine(w_ptr, b_ptr, n, offs_c, mask_c, CHANNELS, HAS_WEIGHT, HAS_BIAS, PLANAR)
    if t == 0:
        tl.store(mean_ptr + n * C + offs_c, mean, mask=mask_c)
        tl.store(rstd_ptr + n * C + offs_c, rstd, mask=mask_c)
    HP, WP = H + 2 * BORDER, W + 2 * BORDER
    for i in range(ITERS):
        out_rows = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        mask_s = out_rows < HP * WP
        rows = out_rows
        if BORDER > 0:
            rows = reflect(out_rows // WP - BORDER, H) * W + reflect(out_rows % WP - BORDER, W)
        x = load_tile(x_ptr + n * H * W * C, rows, mask_s, offs_c, mask_c, C)

        z = (x - mean[None, :]) * rstd[None, :] * w[None, :] + b[None, :]
        y = activate(z, slope, ACT)
        if RESIDUAL:
            y += load_tile(res_ptr + n * H * W * C, rows, mask_s, offs_c, mask_c, C)

        store_tile(y_ptr + n * HP * WP * C, out_rows, mask_s, offs_c, mask_c, C, y)


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_small_fwd_kernel(
    x_ptr, w_ptr, b_ptr, res_ptr, y_ptr, mean_ptr, rstd_ptr, S, C, CHANNELS, eps, slope,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    PLANAR: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Run the whole forward pass in one launch, for images that are small enough for one program.

    A program holds all S <= BLOCK_S pixels of an image in registers.
    """
    n, _, offs_c, mask_c = locate(1, C, BLOCK_C)
    rows = tl.arange(0, BLOCK_S)
    mask_s = rows < S
    base = n * S * C
    x = load_tile(x_ptr + base, rows, mask_s, offs_c, mask_c, C)
    w, b = load_affine(w_ptr, b_ptr, n, offs_c, mask_c, CHANNELS, HAS_WEIGHT, HAS_BIAS, PLANAR)

    mean, m2 = tile_moments(x, mask_s, BLOCK_S)
    rstd = inverse_deviation(m2 / S, eps)
    y = activate((x - mean[None, :]) * rstd[None, :] * w[None, :] + b[None, :], slope, ACT)
    if RESIDUAL:
        y += load_tile(res_ptr + base, rows, mask_s, offs_c, mask_c, C)

    store_tile(y_ptr + base, rows, mask_s, offs_c, mask_c, C, y)
    tl.store(mean_ptr + n * C + offs_c, mean, mask=mask_c)
    tl.store(rstd_ptr + n * C + offs_c, rstd, mask=mask_c)


@triton.jit
def _recompute(x, mean, rstd, w, b):
    """Recompute x-hat and z, the input of the activation, as in the forward pass."""
    xhat = (x - mean[None, :]) * rstd[None, :]
    return xhat, xhat * w[None, :] + b[None, :]


@triton.jit
def _load_moments(mean_ptr, rstd_ptr, n, C, offs_c, mask_c):
    mean = tl.load(mean_ptr + n * C + offs_c, mask=mask_c, other=0.0)
    return mean, tl.load(rstd_ptr + n * C + offs_c, mask=mask_c, other=0.0)


@triton.jit
def _inside(rows, W, BORDER: tl.constexpr):
    """Map flat pixel indices ``rows`` of an image to indices in the image padded by BORDER on each side."""
    if BORDER > 0:
        rows = (rows // W + BORDER) * (W + 2 * BORDER) + rows % W + BORDER
    return rows


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_bwd_sums_kernel(
    dy_ptr, x_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, sums_ptr, ITERS, T, H, W, C, CHANNELS, slope,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, DY_BORDER: tl.constexpr,
    PLANAR: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the sums of dz = dy * act'(z) and of dz * x-hat over each tile, and write them to sums.

    sums is [N, 2, T, C].
    """
    n, t, offs_c, mask_c = locate(T, C, BLOCK_C)
    mean, rstd = _load_moments(mean_ptr, rstd_ptr, n, C, offs_c, mask_c)
    w, b = load_affine(w_ptr, b_ptr, n, offs_c, mask_c, CHANNELS, HAS_WEIGHT, HAS_BIAS, PLANAR)
    dy_base = n * (H + 2 * DY_BORDER) * (W + 2 * DY_BORDER) * C
    sum_dz = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    sum_dzx = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for i in range(ITERS):
        rows = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        mask_s = rows < H * W
        x = load_tile(x_ptr + n * H * W * C, rows, mask_s, offs_c, mask_c, C)
        dy = load_tile(dy_ptr + dy_base, _inside(rows, W, DY_BORDER), mask_s, offs_c, mask_c, C)

        xhat, z = _recompute(x, mean, rstd, w, b)
        # Rows past the end have dy = 0, so they add nothing.
        dz = activation_gradient(dy, z, slope, ACT)
        sum_dz += dz
        sum_dzx += dz * xhat

    offs = (n * 2 * T + t) * C + offs_c
    tl.store(sums_ptr + offs, tl.sum(sum_dz, 0), mask=mask_c)
    tl.store(sums_ptr + T * C + offs, tl.sum(sum_dzx, 0), mask=mask_c)


@triton.jit
def _gradient(dy, x, mean, rstd, w, b, mean_dz, mean_dzx, slope, ACT: tl.constexpr):
    """Return dx = rstd * w * (dz - mean(dz) - x-hat * mean(dz * x-hat)), and z."""
    xhat, z = _recompute(x, mean, rstd, w, b)
    dz = activation_gradient(dy, z, slope, ACT)
    return (rstd * w)[None, :] * (dz - mean_dz[None, :] - xhat * mean_dzx[None, :]), z


@triton.jit
def _margin_rows(m, H, W):
    """Return where entry ``m`` of a packed gradient's margins is stored, and which pixels it adds up.

    These are the pixels in up to two rows and two columns; -1 stands for no row or no column. README.md
    describes the packed layout.
    """
    PITCH = W + 2
    zeros, folded_rows = 2 * H, 2 * H + 2 * PITCH
    is_zero, is_row = m < zeros, (m >= zeros) & (m < folded_rows)
    k = m - tl.where(is_row, zeros, folded_rows)
    # Folded rows are stored at rows H and H + 1. Folded columns follow them, each H + 2 long, with the two
    # corners at the end.
    hh = tl.where(is_zero, m // 2, tl.where(is_row, H + k // PITCH, k % (H + 2)))
    ww = tl.where(is_zero, W + m % 2, tl.where(is_row, k % PITCH, W + 2 + k // (H + 2)))
    place = tl.where(is_zero | is_row, hh * PITCH + ww, folded_rows - zeros + H * PITCH + k)
    h0 = tl.where(hh < H, hh, tl.where(hh == H, 0, H - 1))
    h1 = tl.where((hh < H) | (H < 3), -1, tl.where(hh == H, 2, H - 3))
    w0 = tl.where(ww < W, ww, tl.where(ww == W + 2, 0, tl.where(ww == W + 3, W - 1, -1)))
    w1 = tl.where((ww < W + 2) | (W < 3), -1, tl.where(ww == W + 2, 2, W - 3))
    return place, h0, h1, w0, w1


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_bwd_apply_kernel(
    dy_ptr, x_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, sums_ptr, copy_ptr, dx_ptr, y_ptr, total_ptr,
    NC, ITERS, MAIN, TILES, T, H, W, C, CHANNELS, slope,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, DY_BORDER: tl.constexpr,
    Y_BORDER: tl.constexpr,
    RECOMPUTE: tl.constexpr, COPY: tl.constexpr, MARGINS: tl.constexpr, PLANAR: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write dx, and if RECOMPUTE also y = act(IN(x)) with Y_BORDER reflected pixels on each side.

    If MARGINS, dx has the packed layout that the backward passes of convolutions read, and tiles from MAIN on
    write its margins. If COPY, y is the image at copy_ptr (like x) instead, so that its border needs no
    separate launch. total [2, N, C] receives the sums of dz and of dz * x-hat over each image.
    """
    n, t, offs_c, mask_c = locate(TILES, C, BLOCK_C)
    mean, rstd = _load_moments(mean_ptr, rstd_ptr, n, C, offs_c, mask_c)
    w, b = load_affine(w_ptr, b_ptr, n, offs_c, mask_c, CHANNELS, HAS_WEIGHT, HAS_BIAS, PLANAR)
    offs_t = tl.arange(0, BLOCK_T)
    mask_t = (offs_t < T)[:, None] & mask_c[None, :]
    offs = n * 2 * T * C + offs_t[:, None] * C + offs_c[None, :]
    sum_dz = tl.sum(tl.load(sums_ptr + offs, mask=mask_t, other=0.0), 0)
    sum_dzx = tl.sum(tl.load(sums_ptr + T * C + offs, mask=mask_t, other=0.0), 0)
    if t == 0:
        tl.store(total_ptr + n * C + offs_c, sum_dz, mask=mask_c)
        tl.store(total_ptr + NC + n * C + offs_c, sum_dzx, mask=mask_c)
    mean_dz, mean_dzx = sum_dz / (H * W), sum_dzx / (H * W)
    x_ptr += n * H * W * C
    dy_ptr += n * (H + 2 * DY_BORDER) * (W + 2 * DY_BORDER) * C
    dx_ptr += n * (H + 2) * (W + 4) * C if MARGINS else n * H * W * C
    HP, WP = H + 2 * Y_BORDER, W + 2 * Y_BORDER
    for i in range(ITERS):
        k = (t * ITERS + i) * BLOCK_S + tl.arange(0, BLOCK_S)
        if t < MAIN:
            # k runs over y and its border. The pixels of dx are those inside the border.
            mask_s = k < HP * WP
            h, col = k // WP - Y_BORDER, k % WP - Y_BORDER
            inside = mask_s & (h >= 0) & (h < H) & (col >= 0) & (col < W)
            rows = reflect(h, H) * W + reflect(col, W) if Y_BORDER > 0 else k
            x = load_tile(x_ptr, rows, mask_s, offs_c, mask_c, C)
            dy = load_tile(dy_ptr, _inside(rows, W, DY_BORDER), inside, offs_c, mask_c, C)

            dx, z = _gradient(dy, x, mean, rstd, w, b, mean_dz, mean_dzx, slope, ACT)

            store_tile(dx_ptr, h * (W + 2) + col if MARGINS else rows, inside, offs_c, mask_c, C, dx)
            if RECOMPUTE:
                y = activate(z, slope, ACT)
                if COPY:
                    y = load_tile(copy_ptr + n * H * W * C, rows, mask_s, offs_c, mask_c, C)
                store_tile(y_ptr + n * HP * WP * C, k, mask_s, offs_c, mask_c, C, y)
        elif MARGINS:
            k -= MAIN * ITERS * BLOCK_S
            mask_s = k < 2 * H + 2 * (W + 2) + 2 * (H + 2)
            place, h0, h1, w0, w1 = _margin_rows(k, H, W)
            dx = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
            for j in tl.static_range(4):
                h = h0 if j % 2 == 0 else h1
                col = w0 if j < 2 else w1
                inside = mask_s & (h >= 0) & (col >= 0)
                x = load_tile(x_ptr, h * W + col, inside, offs_c, mask_c, C)
                dy = load_tile(dy_ptr, _inside(h * W + col, W, DY_BORDER), inside, offs_c, mask_c, C)
                part, _ = _gradient(dy, x, mean, rstd, w, b, mean_dz, mean_dzx, slope, ACT)
                # Add the gradients as stored, i.e. rounded.
                dx += tl.where(inside[:, None], part.to(dx_ptr.dtype.element_ty).to(tl.float32), 0.0)
            store_tile(dx_ptr, place, mask_s, offs_c, mask_c, C, dx)


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _instance_norm_small_bwd_kernel(
    dy_ptr, x_ptr, w_ptr, b_ptr, mean_ptr, rstd_ptr, dx_ptr, total_ptr, NC, S, C, CHANNELS, slope,
    ACT: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, PLANAR: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Run the whole backward pass in one launch, for images that are small enough for one program.

    A program holds all S <= BLOCK_S pixels of an image in registers.
    """
    n, _, offs_c, mask_c = locate(1, C, BLOCK_C)
    rows = tl.arange(0, BLOCK_S)
    mask_s = rows < S
    base = n * S * C
    mean, rstd = _load_moments(mean_ptr, rstd_ptr, n, C, offs_c, mask_c)
    w, b = load_affine(w_ptr, b_ptr, n, offs_c, mask_c, CHANNELS, HAS_WEIGHT, HAS_BIAS, PLANAR)
    x = load_tile(x_ptr + base, rows, mask_s, offs_c, mask_c, C)
    dy = load_tile(dy_ptr + base, rows, mask_s, offs_c, mask_c, C)

    xhat, z = _recompute(x, mean, rstd, w, b)
    dz = activation_gradient(dy, z, slope, ACT)
    sum_dz, sum_dzx = tl.sum(dz, 0), tl.sum(dz * xhat, 0)
    dx = (rstd * w)[None, :] * (dz - (sum_dz / S)[None, :] - xhat * (sum_dzx / S)[None, :])

    store_tile(dx_ptr + base, rows, mask_s, offs_c, mask_c, C, dx)
    tl.store(total_ptr + n * C + offs_c, sum_dz, mask=mask_c)
    tl.store(total_ptr + NC + n * C + offs_c, sum_dzx, mask=mask_c)
