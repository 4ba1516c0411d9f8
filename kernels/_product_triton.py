"""Device code shared by the matrix products of all convolutions: load a weight tile, multiply two tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import round_to_tf32


@triton.jit
def load_weight(
    w, p, tap, c0, n0, C: tl.constexpr, O: tl.constexpr, TAPS: tl.constexpr, TRANSPOSED: tl.constexpr,
    DESC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Load a tile [BLOCK_K, BLOCK_N] of weight p for one tap, from channels k = c0 and n = n0 on.

    Element (k, n) is w[p, n, tap, k], or w[p, k, TAPS - 1 - tap, n] if TRANSPOSED. If DESC, w is a tensor
    descriptor.
    """
    if DESC and TRANSPOSED:
        tile = w.load([p * C + c0, (TAPS - 1 - tap) * O + n0])
    elif DESC:
        tile = w.load([p * O + n0, tap * C + c0]).T
    else:
        offs_k, offs_n = c0 + tl.arange(0, BLOCK_K), n0 + tl.arange(0, BLOCK_N)
        mask = (offs_k < C)[:, None] & (offs_n < O)[None, :]
        w += p.to(tl.int64) * (O * TAPS * C)
        if TRANSPOSED:
            offs = offs_k[:, None] * (TAPS * O) + (TAPS - 1 - tap) * O + offs_n[None, :]
        else:
            offs = offs_n[None, :] * (TAPS * C) + tap * C + offs_k[:, None]
        tile = tl.load(w + offs, mask=mask, other=0.0)
    return tile


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, INTERPRET: tl.constexpr):
    """Return acc + a @ b in fp32.

    If INTERPRET, both operands are converted to fp32 first, because Triton's interpreter would multiply the
    raw bits of bf16. The conversion is exact.
    """
    if INTERPRET:
        a, b = a.to(tl.float32), b.to(tl.float32)
    elif PRECISION == "tf32" and a.dtype == tl.float32:
        a, b = round_to_tf32(a), round_to_tf32(b)
    return tl.dot(a, b, acc, input_precision=PRECISION)
