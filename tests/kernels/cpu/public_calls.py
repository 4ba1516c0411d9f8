"""Calls of the public functions, with operands, for the tests of what the C++ kernels make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm, reflect_conv2d, residual_block
from tests.kernels.cpu.processor import BF16, FP32


@dataclass(frozen=True)
class Call:
    """``run(*tensors, impl=...)``, and the shapes of the tensors, of which the first is the image."""

    run: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


def _norm(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, impl: str) -> Tensor:
    return instance_norm(x, weight, bias, act="leaky_relu", residual=residual, impl=impl)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str) -> Tensor:
    return reflect_conv2d(x, weight, bias, padding=weight.shape[2] // 2, impl=impl)


def _convs(x: Tensor, first: Tensor, second: Tensor, *, impl: str) -> Tensor:
    return reflect_conv2d(x, [first, second], padding=1, impl=impl)


def _block(x: Tensor, first: Tensor, second: Tensor, *, impl: str) -> Tensor:
    return residual_block(x, first, second, impl=impl)


def _blocks(x: Tensor, *weights: Tensor, impl: str) -> Tensor:
    return residual_block(x, weights[:2], weights[2:], impl=impl)


_X, _SQUARE = (2, 20, 7, 9), (20, 20, 3, 3)
CALLS = {
    "instance_norm": Call(_norm, (_X, (20,), (20,), _X)),
    "reflect_conv2d": Call(_conv, (_X, _SQUARE)),
    "reflect_conv2d, few outputs": Call(_conv, (_X, (3, 20, 7, 7), (3,))),
    "reflect_conv2d, few channels": Call(_conv, ((2, 3, 7, 9), (20, 3, 7, 7), (20,))),
    "reflect_conv2d, 5x5": Call(_conv, (_X, (24, 20, 5, 5), (24,))),
    "reflect_conv2d, two weights": Call(_convs, (_X, _SQUARE, _SQUARE)),
    "residual_block": Call(_block, (_X, _SQUARE, _SQUARE)),
    "residual_block, two weights": Call(_blocks, (_X, _SQUARE, _SQUARE, _SQUARE, _SQUARE)),
}


def operands(name: str) -> list[Tensor]:
    """Return random tensors for a call: images in channels_last, and weights that keep their size."""
    tensors = []
    for shape in CALLS[name].shapes:
        t = torch.randn(shape)
        if t.dim() == 4:
            t = t.contiguous(memory_format=torch.channels_last)
        is_weight = t.dim() == 4 and shape[2] == shape[3]
        tensors.append(t / t[0].numel() ** 0.5 if is_weight else t)
    return tensors


def leaves_of(tensors: Sequence[Tensor], dtype: torch.dtype = FP32) -> list[Tensor]:
    return [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]


def upstream(y: Tensor) -> Tensor:
    """Return the gradient of ``y``: the same numbers in every dtype, and in no special layout."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(y.shape, generator=generator).to(BF16).to(y.dtype)


def results_of(name: str, impl: str, leaves: Sequence[Tensor], autocast: bool = False) -> list[Tensor]:
    """Return the output of a call and the gradients of all its operands."""
    with torch.autocast("cpu", BF16, enabled=autocast):
        y = CALLS[name].run(*leaves, impl=impl)
    return [y, *torch.autograd.grad(y, leaves, upstream(y))]
