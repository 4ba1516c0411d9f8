"""Triton kernels of the reflection-padded convolution (device code). The contract is in reflect_conv.py.

Each convolution is an implicit matrix product: rows are output pixels, columns are output channels, and the
sum runs over taps (kh, kw) and input channels. Memory is channels_last. Weights are [P, O, KH, KW, C], and
image n of N uses weight n // PER. README.md derives the three products (forward, input gradient, weight
gradient), the buffers that they read, and the reasons for each form.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._launch import kernel
from ._math import load_operand, load_tile, locate, masked_moments, reflect, store_tile
from ._product_triton import load_weight, product

# Kernels are not specialised for these arguments, so that one compiled kernel serves all image sizes. A
# second kernel for sizes that are multiples of 16 is not worth compiling.
COUNTS = [
    "TILES",
    "PER",
    "H",
    "W",
    "SH",
    "SW",
    "PITCH",
    "ROWS",
    "FIRST",
    "STEPS",
    "CHUNKS",
    "LIMIT",
    "G",
    "SPLITS",
    "X_LIMIT",
]
COUNTS += ["DY_ROWS"]

# Modes: how a tap finds the pixel that it reads for an output pixel.
REFLECT = tl.constexpr(0)  # in a plain image, with reflected indices
LINEAR = tl.constexpr(
    1
)  # in an image that includes its border: each tap shifts the linear index by one number
FOLDED = tl.constexpr(2)  # in a gradient in the packed layout (3x3): the adjoint of REFLECT


@triton.jit
def _folded_rows(h, w, kh, kw, H, W):
    """Return the row of the packed gradient that tap (kh, kw) adds to dx[h, w], and whether it exists.

    README.md describes the packed layout.
    """
    row, col = h + 1 - kh, w + 1 - kw
    row = tl.where((kh == 0) & (h == 1), H, tl.where((kh == 2) & (h == H - 2), H + 1, row))
    inside = (row >= 0) & ((row < H) | (kh == 0) & (h == 1) | (kh == 2) & (h == H - 2))
    first, last = (kw == 0) & (w == 1), (kw == 2) & (w == W - 2)
    inside &= first | last | ((col >= 0) & (col < W))
    side = (H + 2) * (W + 2) + row
    return tl.where(first, side, tl.where(last, side + H + 2, row * (W + 2) + col)), inside


@triton.jit
def _source_rows(m, tap, H, W, SH, SW, PITCH, LIMIT, PAD: tl.constexpr, KW: tl.constexpr, MODE: tl.constexpr):
    """Return the input row that ``tap`` reads for each output pixel ``m``, and a mask of existing rows."""
    kh, kw = tap // KW, tap % KW
    if MODE == LINEAR:
        rows = m + kh * PITCH + kw
        mask = rows < LIMIT
    elif MODE == REFLECT:
        rows = reflect(m // W + kh - PAD, SH) * SW + reflect(m % W + kw - PAD, SW)
        mask = m < H * W
    else:
        # The weight's taps are reversed.
        rows, mask = _folded_rows(m // W, m % W, 2 - kh, 2 - kw, H, W)
        mask &= m < H * W
    return rows, mask


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _reflect_conv_kernel(
    x, w, bias_ptr, res_ptr, y_ptr, part_ptr, TILES, PER, H, W, SH, SW, PITCH, ROWS, LIMIT,
    C: tl.constexpr, O: tl.constexpr, XS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PAD: tl.constexpr,
    MODE: tl.constexpr,
    TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, STATS: tl.constexpr,
    DESC: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve x [N, ROWS, XS] with w, add bias and res, and write the result to y [N, H W, O].

    The sum runs over taps and C channels. bias is [P, O], and res is like y. Pixels of x are XS elements
    apart. In mode REFLECT, x is SH x SW, and PAD pixels are reflected. In mode LINEAR, output pixel (h, w) is
    number h PITCH + w of its image, and LIMIT rows are read. If STATS, part [N, 2, TILES, O] receives the
    mean and M2 of each tile of y as stored. If DESC, x and w are tensor descriptors.
    """
    n, t, offs_n, mask_n = locate(TILES, O, BLOCK_N)
    n0 = tl.program_id(0) % tl.cdiv(O, BLOCK_N) * BLOCK_N
    p = (n // PER).to(tl.int32)
    m = t * BLOCK_M + tl.arange(0, BLOCK_M)
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(KH * KW * CHUNKS):
        tap, c0 = i // CHUNKS, i % CHUNKS * BLOCK_K
        if DESC:
            a = x.load([(n * ROWS).to(tl.int32) + t * BLOCK_M + tap // KW * PITCH + tap % KW, c0])
        else:
            rows, mask = _source_rows(m, tap, H, W, SH, SW, PITCH, LIMIT, PAD, KW, MODE)
            a = load_operand(
                x + n * ROWS * XS, rows, mask, XS, c0 + tl.arange(0, BLOCK_K), C, C % BLOCK_K == 0
            )
        b = load_weight(w, p, tap, c0, n0, C, O, KH * KW, TRANSPOSED, DESC, BLOCK_N, BLOCK_K)
        acc = product(a, b, acc, PRECISION, INTERPRET)

    if HAS_BIAS:
        acc += tl.load(bias_ptr + p * O + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if MODE == LINEAR:
        rows, mask_m = m // PITCH * W + m % PITCH, (m < H * PITCH) & (m % PITCH < W)
    else:
        rows, mask_m = m, m < H * W
    if RESIDUAL:
        acc += load_tile(res_ptr + n * H * W * O, rows, mask_m, offs_n, mask_n, O)
    store_tile(y_ptr + n * H * W * O, rows, mask_m, offs_n, mask_n, O, acc)
    if STATS:
        # Read y back as stored, in the layout of stores. Each thread then holds many rows of few columns, so
        # sums need hardly any shuffles.
        tl.debug_barrier()
        mean, m2 = masked_moments(load_tile(y_ptr + n * H * W * O, rows, mask_m, offs_n, mask_n, O), mask_m)
        offs = (n * 2 * TILES + t) * O + offs_n
        tl.store(part_ptr + offs, mean, mask=mask_n)
        tl.store(part_ptr + TILES * O + offs, m2, mask=mask_n)


@triton.jit
def _tanh(v):
    """Return tanh to within a few units in the last place.

    Near 0, where 1 - exp(-2 |v|) suffers from cancellation, the Taylor series is used.
    """
    t = tl.exp(-2.0 * tl.abs(v))
    far = (1.0 - t) / (1.0 + t)
    s = v * v
    near = v * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0)))))
    return tl.where(tl.abs(v) < 0.25, near, tl.where(v < 0, -far, far))


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _reflect_conv_contract_kernel(
    x, w, bias_ptr, y_ptr, TILES, PER, H, W, PITCH, ROWS, LIMIT,
    C: tl.constexpr, O: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, KW_P: tl.constexpr,
    O_P: tl.constexpr,
    HAS_BIAS: tl.constexpr, TANH: tl.constexpr, DESC: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Convolve a bordered x [N, ROWS, C] with few output channels, and write y [N, H W, O <= 8].

    The columns of the matrix product are (kw, o), and each tap's share is then shifted by kw. In this way,
    each pixel of x is read only KH times and not KH KW times. w is [P, KH, C, KW_P O_P], with zeros where
    kw >= KW or o >= O. A tile of BLOCK_M pixels of x yields BLOCK_M - KW + 1 pixels of y.
    """
    COLUMNS: tl.constexpr = KW_P * O_P
    pid = tl.program_id(0)
    t, n = pid % TILES, (pid // TILES).to(tl.int64)
    p = (n // PER).to(tl.int32)
    m0 = t * (BLOCK_M - KW + 1)
    m = m0 + tl.arange(0, BLOCK_M)
    offs_j = tl.arange(0, COLUMNS)
    CHUNKS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, COLUMNS], tl.float32)
    for i in range(KH * CHUNKS):
        kh, c0 = i // CHUNKS, i % CHUNKS * BLOCK_K
        offs_k = c0 + tl.arange(0, BLOCK_K)
        if DESC:
            a = x.load([(n * ROWS).to(tl.int32) + m0 + kh * PITCH, c0])
        else:
            rows = m + kh * PITCH
            a = load_operand(x + n * ROWS * C, rows, rows < LIMIT, C, offs_k, C, C % BLOCK_K == 0)
        offs_w = ((p * KH + kh) * C + offs_k)[:, None] * COLUMNS + offs_j[None, :]
        b = tl.load(w + offs_w, mask=(offs_k < C)[:, None], other=0.0)
        acc = product(a, b, acc, PRECISION, INTERPRET)

    r = tl.arange(0, BLOCK_M)
    shifted = tl.minimum(r[:, None] + (offs_j // O_P)[None, :], BLOCK_M - 1)
    y = tl.sum(tl.reshape(tl.gather(acc, shifted, 0), [BLOCK_M, KW_P, O_P]), 1)
    offs_o = tl.arange(0, O_P)
    mask_o = offs_o < O
    if HAS_BIAS:
        y += tl.load(bias_ptr + p * O + offs_o, mask=mask_o, other=0.0).to(tl.float32)[None, :]
    if TANH:
        y = _tanh(y)
    mask_m = (r <= BLOCK_M - KW) & (m < H * PITCH) & (m % PITCH < W)
    offs = (m // PITCH * W + m % PITCH).to(tl.int64)[:, None] * O + offs_o[None, :]
    tl.store(
        y_ptr + n * H * W * O + offs, y.to(y_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_o[None, :]
    )


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _reflect_conv_wgrad_kernel(
    dy, x, part_ptr, SPLITS, STEPS, CHUNKS, PER, G, LIMIT, FIRST, DY_ROWS, ROWS, X_LIMIT, PITCH,
    O: tl.constexpr, C: tl.constexpr, XS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    DESC: tl.constexpr, PRECISION: tl.constexpr,
    INTERPRET: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute a weight gradient as partial sums, and write them to part [SPLITS, G, O, KH KW, C].

    They are sums over pixels m of dy[m, o] x[m + kh PITCH + kw, c], and each split sums a share of the
    pixels. dy [G PER, DY_ROWS, O] is read from row FIRST of each image on, and is zero where a line has no
    pixel; x is [G PER, ROWS, XS]. The sums cover LIMIT rows of each image in CHUNKS blocks, and a program
    processes STEPS blocks of its group's images. If DESC, dy is a tensor descriptor, and so is x unless its C
    channels are a window of pixels, whose rows overlap.
    """
    pid = tl.program_id(0)
    c_blocks: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    o_blocks: tl.constexpr = (O + BLOCK_M - 1) // BLOCK_M
    c0, o0 = pid % c_blocks * BLOCK_N, pid // c_blocks % o_blocks * BLOCK_M
    tap = pid // (c_blocks * o_blocks) % (KH * KW)
    rest = pid // (c_blocks * o_blocks * KH * KW)
    g, split = rest % G, rest // G
    shift = tap // KW * PITCH + tap % KW
    offs_o, offs_c = o0 + tl.arange(0, BLOCK_M), c0 + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(split * STEPS, tl.minimum(split * STEPS + STEPS, PER * CHUNKS)):
        image, m0 = g * PER + i // CHUNKS, i % CHUNKS * BLOCK_K
        m = m0 + tl.arange(0, BLOCK_K)
        if DESC:
            a = dy.load([image * DY_ROWS + FIRST + m0, o0])
        else:
            base = tl.full([1], image, tl.int64)
            a = load_operand(dy + base * DY_ROWS * O, m + FIRST, m < LIMIT, O, offs_o, O, O % BLOCK_M == 0)
        if DESC and XS >= C:
            b = x.load([image * ROWS + m0 + shift, c0])
        else:
            base = tl.full([1], image, tl.int64)
            mask = (DESC | (m < LIMIT)) & (m + shift < X_LIMIT)
            b = load_operand(x + base * ROWS * XS, m + shift, mask, XS, offs_c, C, C % BLOCK_N == 0)
        acc = product(a.T, b, acc, PRECISION, INTERPRET)
    base = (split * G + g).to(tl.int64) * (O * KH * KW * C)
    offs = (offs_o[:, None] * (KH * KW) + tap) * C + offs_c[None, :]
    tl.store(part_ptr + base + offs, acc, mask=(offs_o < O)[:, None] & (offs_c < C)[None, :])


@kernel
@triton.jit(do_not_specialize=COUNTS)
def _reflect_conv_wgrad_sum_kernel(
    part_ptr, dw_ptr, SPLITS, NUMEL, DW_STRIDE, PART_SPLIT, PART_NUMEL,
    SO: tl.constexpr, SH_: tl.constexpr, SW_: tl.constexpr, SC: tl.constexpr, START: tl.constexpr,
    WO: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, WC: tl.constexpr,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, FLAT: tl.constexpr, ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Add up the splits of part in their order, and write the sums to dw, or add them if ACCUMULATE.

    dw holds weights [O, KH, KW, C] with strides W*, which are DW_STRIDE elements apart. part has PART_NUMEL
    numbers for each weight, and its splits are PART_SPLIT elements apart. Its element (o, kh, kw, c) is at
    strides S* from START. If FLAT, both are stored in the order (o, kh, kw, c).
    """
    blocks = tl.cdiv(NUMEL, BLOCK)
    pid = tl.program_id(0)
    g = (pid // blocks).to(tl.int64)
    e = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = e < NUMEL
    if FLAT:
        source = e
        target = e
    else:
        c, kw, kh, o = e % C, e // C % KW, e // (C * KW) % KH, e // (C * KW * KH)
        source = START + o * SO + kh * SH_ + kw * SW_ + c * SC
        target = o * WO + kh * WH + kw * WW + c * WC
    total = tl.zeros([BLOCK], tl.float32)
    part_ptr += g * PART_NUMEL
    for _ in range(SPLITS):
        total += tl.load(part_ptr + source, mask=mask, other=0.0)
        part_ptr += PART_SPLIT
    dw_ptr += g * DW_STRIDE
    if ACCUMULATE:
        total += tl.load(dw_ptr + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(dw_ptr + target, total.to(dw_ptr.dtype.element_ty), mask=mask)
