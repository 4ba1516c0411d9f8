"""Join a skip of a U-Net with what comes from below, and apply the ReLU that follows, in one pass.

    y = relu(cat([skip, x], dim=1))

Each half is activated into its place in the result, and the backward writes the two gradients separately and
densely. A concatenation and a ReLU after it would write twice as much in the forward, and then pass on views
of one gradient, which the backward of the norm below copies or, if it is PyTorch's batch norm on a CPU, reads
slowly.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels._layout import empty_channels_last


class _ReluOfBoth(torch.autograd.Function):
    """The ReLU of the concatenation of two tensors [N, C, H, W] and [N, D, H, W], in channels_last."""

    @staticmethod
    def forward(skip: Tensor, x: Tensor) -> Tensor:
        N, C, H, W = skip.shape
        y = empty_channels_last(skip, (N, C + x.shape[1], H, W))
        torch.clamp_min(skip, 0, out=y[:, :C])
        torch.clamp_min(x, 0, out=y[:, C:])
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.channels = inputs[0].shape[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        halves = (slice(None, ctx.channels), slice(ctx.channels, None))
        return tuple(
            torch.ops.aten.threshold_backward(grad[:, half], y[:, half], 0) if needed else None
            for half, needed in zip(halves, ctx.needs_input_grad, strict=True)
        )


def relu_of_both(skip: Tensor, x: Tensor) -> Tensor:
    """Return relu(cat([skip, x], dim=1)), bit for bit, of images [N, C, H, W] and [N, D, H, W].

    A compiler fuses the two operators itself, and a trace that is saved cannot contain a function of ours.
    """
    alone = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if alone or skip.dim() != 4 or skip.dtype != x.dtype or _without_channels(skip) != _without_channels(x):
        return F.relu(torch.cat([skip, x], dim=-3))
    y: Tensor = _ReluOfBoth.apply(skip, x)
    return y


def _without_channels(x: Tensor) -> tuple[int, ...]:
    return x.shape[0], *x.shape[2:]
