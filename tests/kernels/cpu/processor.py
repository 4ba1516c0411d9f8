"""Helpers for the tests of the C++ kernels: operands, PyTorch's own results, and numbers of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.testing import assert_parity, assert_same_bits

FP32, BF16 = torch.float32, torch.bfloat16
THREADS = (1, 2, 7)
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch, and so the kernels, use ``count`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_every_number_of_threads(run: Callable[[], Result]) -> Result:
    """Return ``run()``, after checking that it has the same bits with every number of threads."""
    results = []
    for count in THREADS:
        with threads(count):
            results.append(run())
    first, *others = ((r,) if isinstance(r, Tensor) else r for r in results)
    for other in others:
        for ours, expected in zip(other, first, strict=True):
            assert_same_bits("with another number of threads", ours, expected)
    return results[0]


def images(*shape: int, dtype: torch.dtype = FP32, layout: str = "last") -> Tensor:
    """Return random images: channels last or first, or in a layout that is not dense."""
    x = torch.randn(shape).to(dtype)
    if layout == "last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "first":
        return x
    wide = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)
    return wide[..., ::2]


def region_of_a_map(t: Tensor, left: int = 2, right: int = 3) -> Tensor:
    """Return a view of a channels_last map that is NaN around it, with the numbers of t [1, C, h, w].

    Beside the region, the map has ``left`` and ``right`` columns, and one row above and below.
    """
    _, C, H, W = t.shape
    whole = torch.full((1, H + 2, left + W + right, C), float("nan"), dtype=t.dtype)
    view = whole.permute(0, 3, 1, 2)[:, :, 1 : H + 1, left : left + W]
    return view.copy_(t)


def guarded(t: Tensor) -> Tensor:
    """Return a copy of t [N, C, H, W] in channels_last with NaN before and after it in memory."""
    margin = 64
    store = torch.full((t.numel() + 2 * margin,), float("nan"), dtype=t.dtype)
    N, C, H, W = t.shape
    inner = store[margin : margin + t.numel()].view(N, H, W, C).permute(0, 3, 1, 2)
    return inner.copy_(t)


def padded(x: Tensor, border: int, reflect: bool) -> Tensor:
    if not border:
        return x
    return F.pad(x, (border,) * 4, mode="reflect") if reflect else F.pad(x, (border,) * 4)


def check_convolution(
    ours: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    border: int = 0,
    reflect: bool = True,
) -> None:
    """Assert that ``ours`` obeys the parity rule. Weights and biases are rounded to the dtype of x first."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    pytorch = F.conv2d(padded(x, border, reflect), weight, bias, stride)
    exact = F.conv2d(
        padded(x.double(), border, reflect), weight.double(), None if bias is None else bias.double(), stride
    )
    assert_parity("convolution", ours, pytorch, exact, x.dtype)
    assert ours.is_contiguous(memory_format=torch.channels_last)
