"""Small TorchScript networks with random weights, which stand for a feature network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

FEATURES = 12


class Small(nn.Module):
    """Maps images [N, 3, H, W] in 0..255 to features [N, 12]: means of a convolution and of its squares."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(FEATURES // 2, 3, 5, 5, generator=generator) / 8)

    def forward(self, images: Tensor) -> Tensor:
        found = nn.functional.conv2d(images / 255 - 0.5, self.weight, stride=2)
        return torch.cat([found.mean((2, 3)), found.square().mean((2, 3))], 1)


class Calling(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def saved(net: nn.Module, file: Path, side: int = 24) -> Path:
    """Trace ``net`` on images of ``side`` pixels, write it to ``file`` and return that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor of TorchScript
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 3, side, side)), str(file))
    return file


def small_network(folder: Path, seed: int = 0) -> Path:
    """Write a small feature network for images of any size of 5 pixels or more, and return its file."""
    return saved(Small(seed).eval(), folder / f"small{seed}.pt")
