"""Triton kernels of the zero-padded convolution, strided or transposed (device code).

The contract is in zero_conv.py. The larger of the convolution's two images is called fine, the other coarse.
Tap (a, b) connects coarse pixel (h, w) to fine pixel (S h + a - p, S w + b - p). The weight is
[P, coarse channels, K, K, fine channels] for both kinds of convolution, which are each other's adjoints.
Three kernels are therefore enough, each an implicit matrix product over channels_last memory. README.md
derives them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel
from ._math import load_operand, locate, store_tile
from ._product_triton import load_weight, product

# Kernels are not specialised for these arguments, so that one compiled kernel serves all image sizes.
COUNTS = [
    "N",
    "TAPS",
    "TILES",
    "PER",
    "H",
    "W",
    "SH",
    "SW",
    "ROWS",
    "SPLITS",
    "STEPS",
    "ACROSS",
    "CHUNKS",
    "G",
]


@triton.jit
def _store(ptr, rows, mask_m, offs_n, mask_n, O: tl.constexpr, tile):
    """Store a tile like ``store_tile``, or element by element if O is not a multiple of 8."""
    if O % 8 == 0:
        store_tile(ptr, rows, mask_m, offs_n, mask_n, O, tile)
    else:
        offs = rows.to(tl.int64)[:, None] * O + offs_n[None, :]
        tl.store(ptr + offs, tile.to(ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _zero_conv_gather_kernel(
    x, w, bias_ptr, y_ptr, TAPS, TILES, PER, H, W, SH, SW, ROWS,
    C: tl.constexpr, O: tl.constexpr, XS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve the fine image x [N, ROWS, XS] with w [P, O, KH, KW, C], and write y [N, H W, O] (coarse).

    x has SH x SW pixels. Each tap reads its pixels by index, and pixels outside x are zeros. If C exceeds XS,
    the C values are a window of neighbouring pixels. TAPS is KH KW; it is passed as an argument because the
    compiler would unroll a loop over a constant.
    """
    n, t, offs_n, mask_n = locate(TILES, O, BLOCK_N)
    n0 = tl.program_id(0) % tl.cdiv(O, BLOCK_N) * BLOCK_N
    p = (n // PER).to(tl.int32)
    m = t * BLOCK_M + tl.arange(0, BLOCK_M)
    top, left = m // W * STRIDE - PAD, m % W * STRIDE - PAD
    x += n * ROWS * XS
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(TAPS * CHUNKS):
        tap, c0 = i // CHUNKS, i % CHUNKS * BLOCK_K
        h, q = top + tap // KW, left + tap % KW
        mask = (h >= 0) & (h < SH) & (q >= 0) & (q < SW)
        a = load_operand(x, h * SW + q, mask, XS, c0 + tl.arange(0, BLOCK_K), C, C % BLOCK_K == 0)
        b = load_weight(w, p, tap, c0, n0, C, O, KH * KW, False, False, BLOCK_N, BLOCK_K)
        acc = product(a, b, acc, PRECISION, INTERPRET)

    if HAS_BIAS:
        acc += tl.load(bias_ptr + p * O + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    _store(y_ptr + n * H * W * O, m, m < H * W, offs_n, mask_n, O, acc)


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _zero_conv_scatter_kernel(
    x, w, bias_ptr, y_ptr, N, TILES, PER, H, W, SH, SW,
    C: tl.constexpr, O: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Apply the transposed convolution w [P, C, K, K, O] to x [N, SH SW, C] (coarse), and write y (fine).

    y is [N, H W, O]. This is the adjoint of the gather kernel. A program computes pixels of one phase,
    (h0 + STRIDE u, w0 + STRIDE v), which are reached by taps of one parity. The first phase has the most
    taps.
    """
    o_blocks: tl.constexpr = (O + BLOCK_N - 1) // BLOCK_N
    pid = tl.program_id(0)
    n0, t, rest = pid % o_blocks * BLOCK_N, pid // o_blocks % TILES, pid // o_blocks // TILES
    n, phase = (rest % N).to(tl.int64), rest // N
    p = (n // PER).to(tl.int32)
    a0, b0 = phase // STRIDE, phase % STRIDE
    # h0 + PAD is a0 plus a multiple of the stride.
    h0, w0 = (a0 + PAD * (STRIDE - 1)) % STRIDE, (b0 + PAD * (STRIDE - 1)) % STRIDE
    width = tl.maximum((W - w0 + STRIDE - 1) // STRIDE, 1)
    # The number of taps with even and with odd indices.
    MORE: tl.constexpr = (K + STRIDE - 1) // STRIDE
    LESS: tl.constexpr = K // STRIDE
    taps_a, taps_b = tl.where(a0 == 0, MORE, LESS), tl.where(b0 == 0, MORE, LESS)
    m = t * BLOCK_M + tl.arange(0, BLOCK_M)
    u, v = m // width, m % width
    top, left = u + (h0 + PAD) // STRIDE, v + (w0 + PAD) // STRIDE
    offs_n = n0 + tl.arange(0, BLOCK_N)
    mask_n = offs_n < O
    x += n * SH * SW * C
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(taps_a * taps_b * CHUNKS):
        j, c0 = i // CHUNKS, i % CHUNKS * BLOCK_K
        ja = j // MORE if MORE == LESS or LESS == 0 else tl.where(b0 == 0, j // MORE, j // LESS)
        jb = j - ja * taps_b
        h, q = top - ja, left - jb
        mask = (h >= 0) & (h < SH) & (q >= 0) & (q < SW)
        a = load_operand(x, h * SW + q, mask, C, c0 + tl.arange(0, BLOCK_K), C, C % BLOCK_K == 0)
        # load_weight counts taps from the last one.
        tap = K * K - 1 - (a0 + STRIDE * ja) * K - b0 - STRIDE * jb
        b = load_weight(w, p, tap, c0, n0, C, O, K * K, True, False, BLOCK_N, BLOCK_K)
        acc = product(a, b, acc, PRECISION, INTERPRET)

    if HAS_BIAS:
        acc += tl.load(bias_ptr + p * O + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    h, q = h0 + STRIDE * u, w0 + STRIDE * v
    _store(y_ptr + n * H * W * O, h * W + q, (h < H) & (q < W), offs_n, mask_n, O, acc)


@triton.jit
def load_taps(x, h0, q0, h, q, c, bottom, right, SW, XS: tl.constexpr):
    """Load a tile of a fine image: channels c of pixels (h0 + h, q0 + q).

    Pixels before 0, and from each tap's (bottom, right) on, are zeros. x points to pixel (h0, q0), h and q
    are [pixels, taps], and lines have SW pixels.
    """
    # As unsigned integers, negative numbers are large.
    mask = ((h0 + h).to(tl.uint32) < bottom[None, :].to(tl.uint32)) & (
        (q0 + q).to(tl.uint32) < right[None, :].to(tl.uint32)
    )
    return tl.load(x + (h * SW + q) * XS + c[None, :], mask=mask, other=0.0)


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _zero_conv_wgrad_kernel(
    y, x, part_ptr, SPLITS, STEPS, ACROSS, CHUNKS, PER, G, H, W, SH, SW, ROWS,
    O: tl.constexpr, C: tl.constexpr, XS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    STRIDE: tl.constexpr, PAD: tl.constexpr,
    LINE: tl.constexpr, PRECISION: tl.constexpr, INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a weight gradient as partial sums, and write them to part [SPLITS, G, O, KH KW C].

    They are sums over coarse pixels of y[h, w, o] times x[S h + a - p, S w + b - p, c], and each split sums a
    share of the pixels. y is [G PER, H W, O] (coarse), and x is [G PER, ROWS, XS] (fine, with SH lines of SW
    pixels). Columns are (a, b, c), so that even few channels fill a tile. A step processes BLOCK_K // LINE
    lines of LINE pixels. An image has CHUNKS steps, ACROSS of them side by side, and a program runs STEPS of
    them.
    """
    COLUMNS: tl.constexpr = KH * KW * C
    j_blocks: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    o_blocks: tl.constexpr = (O + BLOCK_M - 1) // BLOCK_M
    pid = tl.program_id(0)
    offs_j = pid % j_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_o = pid // j_blocks % o_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    rest = pid // (j_blocks * o_blocks)
    g, split = rest % G, rest // G
    a, b, c = offs_j // C // KW - PAD, offs_j // C % KW - PAD, offs_j % C
    # A tap's pixels end with the fine image or with the coarse one, whichever comes first. Columns past the
    # last one have no pixels.
    bottom = tl.where(offs_j < COLUMNS, tl.maximum(tl.minimum(SH, H * STRIDE + a), 0), 0)
    right = tl.maximum(tl.minimum(SW, W * STRIDE + b), 0)
    r = tl.arange(0, BLOCK_K)
    rh, rq = r // LINE, r % LINE
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(split * STEPS, tl.minimum(split * STEPS + STEPS, PER * CHUNKS)):
        image, chunk = (g * PER + i // CHUNKS).to(tl.int64), i % CHUNKS
        h0, q0 = chunk // ACROSS * (BLOCK_K // LINE), chunk % ACROSS * LINE
        mask = (h0 + rh < H) & (q0 + rq < W)
        lhs = load_operand(
            y + (image * H * W + h0 * W + q0) * O, rh * W + rq, mask, O, offs_o, O, O % BLOCK_M == 0
        )
        source = x + (image * ROWS + (h0 * SW + q0) * STRIDE) * XS
        h, q = (rh * STRIDE)[:, None] + a[None, :], (rq * STRIDE)[:, None] + b[None, :]
        rhs = load_taps(source, h0 * STRIDE, q0 * STRIDE, h, q, c, bottom, right, SW, XS)
        acc = product(lhs.T, rhs, acc, PRECISION, INTERPRET)
    base = (split * G + g).to(tl.int64) * (O * COLUMNS)
    tl.store(
        part_ptr + base + offs_o[:, None] * COLUMNS + offs_j[None, :],
        acc,
        mask=(offs_o < O)[:, None] & (offs_j < COLUMNS)[None, :],
    )
