"""Tests of how weights are grouped for the products: in runs that need a gradient, and in stacks.

Weights that are adjacent in memory are stacked without a copy.
"""

from __future__ import annotations

import torch

from fastcyclegan.kernels import _weights as host
from fastcyclegan.kernels._weights import runs_of

FP32 = torch.float32


def test_runs_of_weights_that_need_a_gradient() -> None:
    assert runs_of([True, True, False, True]) == [(0, 2), (3, 1)]
    assert runs_of([False, False]) == []


def test_adjacent_weights_are_not_copied(device: str) -> None:
    stack = torch.randn(3, 5, 3, 3, 4, device=device).permute(0, 1, 4, 2, 3)
    assert host.stacked(list(stack), FP32).data_ptr() == stack.data_ptr()
    assert host.stacked([stack[1]], FP32).data_ptr() == stack[1].data_ptr()
    other = torch.randn_like(stack[0])
    for weights in (
        [stack[0], stack[2]],
        [stack[1], stack[0]],
        [stack[0], stack[0]],
        list(stack.contiguous()),
        [stack[0], other],
    ):
        copied = host.stacked(weights, FP32)
        assert torch.equal(copied, torch.stack(weights).permute(0, 1, 3, 4, 2))
        assert copied.untyped_storage().data_ptr() != stack.untyped_storage().data_ptr()
