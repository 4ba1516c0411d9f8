"""Device functions shared by the kernels: indexing, tile loads and stores, reflection, activations, moments.

Tiles are [BLOCK_S, BLOCK_C]: rows are pixels, columns are channels. All tensor-sized reads and writes go
through ``load_tile`` and ``store_tile``, so that the access width in the compiler's output can be checked
line by line. Moments are merged by Chan's formula. README.md has the derivations.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def locate(T, C, BLOCK_C: tl.constexpr):
    """Return the indices of this program's image (int64) and tile, its channels, and their mask.

    Neighbouring programs work on the same rows, so that whole cache lines are read.
    """
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    t = pid // c_blocks % T
    n = (pid // c_blocks // T).to(tl.int64)
    return n, t, offs_c, offs_c < C


@triton.jit
def load_tile(ptr, rows, mask_s, offs_c, mask_c, C):
    offs = rows.to(tl.int64)[:, None] * C + offs_c[None, :]
    return tl.load(ptr + offs, mask=mask_s[:, None] & mask_c[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_tile(ptr, rows, mask_s, offs_c, mask_c, C, tile):
    offs = rows.to(tl.int64)[:, None] * C + offs_c[None, :]
    tl.store(ptr + offs, tile.to(ptr.dtype.element_ty), mask=mask_s[:, None] & mask_c[None, :])


@triton.jit
def load_pixels(ptr, rows, mask_s, offs_c, mask_c, C, WIDE: tl.constexpr):
    """Load a tile like ``load_tile``, but from images with any number of channels.

    WIDE tells whether rows consist of whole 16-byte pieces. With 3 channels, for example, they do not.
    """
    if WIDE:
        return load_tile(ptr, rows, mask_s, offs_c, mask_c, C)
    else:
        offs = rows.to(tl.int64)[:, None] * C + offs_c[None, :]
        return tl.load(ptr + offs, mask=mask_s[:, None] & mask_c[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_operand(ptr, rows, mask, STRIDE, offs_c, C, EVEN: tl.constexpr):
    """Load a tile [rows, channels] of an operand of a matrix product, in the operand's dtype.

    If EVEN, every channel index in the tile is less than C, so the channels need no mask.
    """
    offs = (rows.to(tl.int64) * STRIDE)[:, None] + offs_c[None, :]
    return tl.load(
        ptr + offs, mask=mask[:, None] if EVEN else mask[:, None] & (offs_c < C)[None, :], other=0.0
    )


@triton.jit
def round_to_tf32(x):
    """Return fp32 ``x`` rounded to 10 mantissa bits, halves away from zero.

    Without this, matrix instructions would truncate the other bits, and every sum would come out smaller.
    """
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & ~0x1FFF
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def reflect(i, SIZE):
    """Return the index in [0, SIZE) that reflection padding reads at index ``i`` in (-SIZE, 2 SIZE - 1)."""
    i = tl.abs(i)
    return tl.where(i >= SIZE, 2 * (SIZE - 1) - i, i)


@triton.jit
def activate(z, slope, ACT: tl.constexpr):
    """Apply activation ACT to ``z`` (0: none, 1: relu, 2: leaky_relu). NaN stays NaN."""
    if ACT == 1:
        z = tl.where(z < 0, 0.0, z)
    elif ACT == 2:
        z = tl.where(z > 0, z, z * slope)
    return z


@triton.jit
def activation_gradient(dy, z, slope, ACT: tl.constexpr):
    if ACT == 1:
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACT == 2:
        dy = tl.where(z > 0, dy, dy * slope)
    return dy


@triton.jit
def combine_lanes(count, mean, m2, first):
    """Combine the moments of L groups by Chan's formula, and return mean and M2 [C] of all values together.

    count is [L, 1], mean and M2 are [L, C]; ``first`` [C] is the mean of any group that is not empty. Means
    are summed as differences from ``first``. This is exact for a flat image, and for a large mean it is as
    precise as the values themselves.
    """
    total = tl.sum(count, 0)
    d = tl.where(count > 0, mean - first[None, :], 0.0)
    shift = tl.sum(d * count, 0) / total
    d = tl.where(count > 0, d - shift[None, :], 0.0)
    return first + shift, tl.sum(m2 + count * d * d, 0)


@triton.jit
def tile_moments(x, mask_s, BLOCK_S: tl.constexpr):
    """Return mean and M2 [C] of a tile x [BLOCK_S, C] over the rows in ``mask_s`` (including row 0)."""
    first = tl.sum(tl.where((tl.arange(0, BLOCK_S) == 0)[:, None], x, 0.0), 0)
    return combine_lanes(mask_s.to(tl.float32)[:, None], x, tl.zeros_like(x), first)


@triton.jit
def masked_moments(x, mask_s):
    """Return mean and M2 [C] of a tile x [BLOCK_S, C] over the rows in ``mask_s`` (at least one).

    The second pass works on differences from the first pass's mean, and corrects it by the mean of these
    differences. The mean of a flat tile is therefore exactly its value.
    """
    count = tl.sum(mask_s.to(tl.float32), 0)
    mean = tl.sum(tl.where(mask_s[:, None], x, 0.0), 0) / count
    d = tl.where(mask_s[:, None], x - mean[None, :], 0.0)
    shift = tl.sum(d, 0) / count
    return mean + shift, tl.maximum(tl.sum(d * d, 0) - count * shift * shift, 0.0)


@triton.jit
def pixels_before(i, H, W, PITCH):
    """Return how many of the first ``i`` positions, in lines of PITCH, are pixels of an H x W image."""
    i = tl.minimum(i, H * PITCH)
    return i // PITCH * W + tl.minimum(i % PITCH, W)


@triton.jit
def combine_tiles(part_ptr, n, T, H, W, C, ROWS, PITCH, offs_c, mask_c, BLOCK_T: tl.constexpr):
    """Return mean and variance [C] of image ``n`` from the partial moments part [N, 2, T, C].

    Each of the T tiles covers ROWS positions. They are in lines of length PITCH >= W, of which the first W
    positions are pixels.
    """
    offs_t = tl.arange(0, BLOCK_T)
    mask = (offs_t < T)[:, None] & mask_c[None, :]
    offs = offs_t[:, None] * C + offs_c[None, :]
    mean_ptr = part_ptr + n * 2 * T * C
    first = tl.load(mean_ptr + offs_c, mask=mask_c, other=0.0)
    mean = tl.load(mean_ptr + offs, mask=mask, other=0.0)
    m2 = tl.load(mean_ptr + T * C + offs, mask=mask, other=0.0)
    count = pixels_before((offs_t + 1) * ROWS, H, W, PITCH) - pixels_before(offs_t * ROWS, H, W, PITCH)
    mean, m2 = combine_lanes(tl.where(offs_t < T, count, 0).to(tl.float32)[:, None], mean, m2, first)
    return mean, m2 / (H * W)


@triton.jit
def inverse_deviation(variance, eps):
    return tl.div_rn(1.0, tl.sqrt_rn(variance + eps))


@triton.jit
def load_affine(
    w_ptr,
    b_ptr,
    n,
    offs_c,
    mask_c,
    CHANNELS,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PLANAR: tl.constexpr,
):
    """Return weight and bias [C] in fp32, ones for a missing weight and zeros for a missing bias.

    If PLANAR, image n is a single plane and belongs to channel n % CHANNELS.
    """
    index = offs_c + n % CHANNELS if PLANAR else offs_c
    w = tl.full(offs_c.shape, 1.0, tl.float32)
    b = tl.zeros(offs_c.shape, tl.float32)
    if HAS_WEIGHT:
        w = tl.load(w_ptr + index, mask=mask_c, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b = tl.load(b_ptr + index, mask=mask_c, other=0.0).to(tl.float32)
    return w, b
