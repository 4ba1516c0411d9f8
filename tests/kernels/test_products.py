"""Tests of the matrix products outside any layer: the moments of their outputs, and splitting long sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastcyclegan.kernels import _products as products
from fastcyclegan.testing import assert_parity, tf32

FP32 = torch.float32


def test_moments_are_accurate_for_a_mean_of_a_thousand_deviations(device: str) -> None:
    """The moments that a product's epilogue computes are accurate even if the mean is far from zero.

    The convolution is the identity, and tiles begin in the middle of lines. E[x^2] - E[x]^2 would be too
    inaccurate here.
    """
    from fastcyclegan.kernels._norm import Norm
    from fastcyclegan.kernels._products import product_and_moments
    from fastcyclegan.kernels._tiles import empty_bordered
    from fastcyclegan.kernels.border_launch import Pixels, reflect_pad
    from fastcyclegan.kernels.instance_norm_launch import apply

    torch.manual_seed(0)
    x = (1000 + torch.randn(1, 16, 9, 7, device=device)).contiguous(memory_format=torch.channels_last)
    identity = torch.zeros(1, 16, 3, 3, 16, device=device)
    identity[0, :, 1, 1] = torch.eye(16, device=device)
    with tf32(False):
        y, moments = product_and_moments(Pixels.of(reflect_pad(x, 1)), identity, (9, 7))
    assert torch.equal(y, x)
    out, mean, rstd = empty_bordered(x, 0), x.new_empty(1, 16), x.new_empty(1, 16)
    apply(y, moments, (out, mean, rstd), Norm())
    truth = F.instance_norm(x.double())
    assert_parity("y", out, F.instance_norm(x.contiguous()), truth, FP32)


def test_split_k_fills_the_chip() -> None:
    """``split_k`` divides a sum into enough shares to fill the chip, but into no more shares than steps.

    It returns fewer shares if the partial sums would cost more than they save.
    """
    weight_blocks, tile = 18, 4 * 128 * 256
    assert products.split_k(weight_blocks, 66, tile, 132) == 6
    assert products.split_k(132, 66, tile, 132) == 1
    assert products.split_k(1, 2, tile, 132) <= 2
    assert all(
        1 <= products.split_k(blocks, chunks, tile, 132) <= chunks
        for blocks in (1, 7, 500)
        for chunks in (1, 3, 1000)
    )
