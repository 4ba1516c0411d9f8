"""Tests of the kernels' device functions on single numbers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastcyclegan.kernels._math import round_to_tf32


@triton.jit
def _round_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    tl.store(y_ptr + offs, round_to_tf32(tl.load(x_ptr + offs)))


def test_rounding_to_tf32(device: str) -> None:
    """``round_to_tf32`` rounds to the nearest number with 10 mantissa bits, and halves away from zero.

    Infinities and NaN, including the NaN that a GPU produces, stay unchanged.
    """
    ulp = 2.0**-10
    x = [
        1.0,
        1 + ulp,
        1 + 0.49 * ulp,
        1 + 0.5 * ulp,
        -1 - 0.5 * ulp,
        1 + 0.51 * ulp,
        3e-39,
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        2 - ulp / 8,
    ]
    expected = [
        1.0,
        1 + ulp,
        1.0,
        1 + ulp,
        -1 - ulp,
        1 + ulp,
        3e-39,
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        2.0,
    ]
    inputs = torch.tensor([*x, float("nan"), 0, 0, 0], device=device)
    inputs.view(torch.int32)[-1] = 0x7FFFFFFF
    rounded = torch.empty_like(inputs)
    _round_kernel[(1,)](inputs, rounded, 16)
    torch.testing.assert_close(rounded[:12].cpu(), torch.tensor(expected), rtol=0, atol=6e-42)
    assert rounded[[12, 15]].isnan().all()
