"""Tests of the norm's backward pass with the options that convolutions use.

With these, it reads dy inside a border, adds dx's margins (folded rows and columns), and writes y again.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastcyclegan.kernels import instance_norm_launch as host
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels._tiles import bordered_shape, empty_bordered
from fastcyclegan.kernels.instance_norm import instance_norm_ref
from fastcyclegan.testing import packed_gradient
from tests.kernels.arguments import channels_last

FP32, FP16 = torch.float32, torch.float16


@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize("shape", [(2, 5, 2, 2), (1, 3, 3, 5), (1, 20, 9, 7)])
def test_one_pass_writes_margins_and_border(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """One backward pass can read dy inside a border, write dx and its margins, and write y with a border."""
    torch.manual_seed(0)
    x = channels_last(*shape, device=device).to(dtype)
    norm = Norm(act="relu", slope=0.0)
    _, mean, rstd = host.forward(x, norm)
    bordered = channels_last(*bordered_shape(x, 1), device=device).to(dtype)
    inner = bordered[:, :, 1:-1, 1:-1].contiguous(memory_format=torch.channels_last)
    plain, total = host.backward(inner, x, norm, mean, rstd)
    y = empty_bordered(x, 1)
    extras = host.Extras(dy_border=1, y_border=1, margins=True, y=y)
    packed, same_total = host.backward(bordered, x, norm, mean, rstd, extras)
    # The sum is taken over the stored values and rounded once.
    torch.testing.assert_close(packed, packed_gradient(plain.float()).to(dtype))
    torch.testing.assert_close(total, same_total)
    torch.testing.assert_close(y, F.pad(instance_norm_ref(x, act="relu"), (1,) * 4, mode="reflect"))
