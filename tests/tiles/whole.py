"""Helpers that compute a network by tiles, and check what is read and written meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.execute import Ends, Execution, Progress
from fastcyclegan.tiles.plan import plan
from fastcyclegan.tiles.spans import Window
from fastcyclegan.tiles.storage import TensorRows


class Clock:
    """The number of the pass that runs, from 0."""

    def __init__(self) -> None:
        self.number = 0

    def advance(self, progress: Progress) -> None:
        self.number = progress.number - (progress.tile < progress.tiles)


class TrackedRows(TensorRows):
    """Rows that know which pass wrote each pixel. Only pixels of the last complete map can be read."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, clock: Clock) -> None:
        super().__init__(shape, dtype, torch.device("cpu"))
        self.clock = clock
        self.writers = torch.full(tuple(shape[:2]), -1)
        self.passes: list[int] = []

    def read(self, window: Window) -> Tensor:
        last = max(number for number in self.passes if number < self.clock.number)
        writers = self.writers[slice(*window[0]), slice(*window[1])]
        assert (writers == last).all(), f"pixels of another map than that of pass {last} are read"
        return super().read(window)

    def write(self, window: Window, pixels: Tensor) -> None:
        writers = self.writers[slice(*window[0]), slice(*window[1])]
        assert (writers != self.clock.number).all(), "a pass writes a pixel twice"
        writers.fill_(self.clock.number)
        self.passes.append(self.clock.number)
        super().write(window, pixels)


def run_plan(plan: Plan, x: Tensor, impl: str = "reference") -> Tensor:
    """Return what ``plan`` computes for the image x. Fails if a pixel is written twice, or read too late."""
    height, width = plan.sizes[plan.result]
    result: list[Tensor] = []
    counts = torch.zeros(height, width, dtype=torch.int64)
    clock = Clock()

    def read(window: Window) -> Tensor:
        (top, bottom), (left, right) = window
        assert 0 <= top < bottom <= x.shape[2]
        assert 0 <= left < right <= x.shape[3]
        return x[:, :, top:bottom, left:right]

    def write(window: Window, y: Tensor) -> None:
        (top, bottom), (left, right) = window
        if not result:
            result.append(y.new_full((1, y.shape[1], height, width), float("nan")))
        assert y.shape[2:] == (bottom - top, right - left)
        result[0][:, :, top:bottom, left:right] = y
        counts[top:bottom, left:right] += 1

    execution = Execution(plan, Calls(impl), x.device, lambda shape, dtype: TrackedRows(shape, dtype, clock))
    execution.run(Ends(read, write, clock.advance))
    assert (counts == 1).all()
    return result[0]


def tiled(net: nn.Module, x: Tensor, tile: int, impl: str = "reference") -> Tensor:
    """Return the result of ``net`` for x [1, C, H, W], computed by tiles of ``tile`` pixels."""
    return run_plan(plan(net, x.shape[1], (x.shape[2], x.shape[3]), tile), x, impl)


def randomised(net: nn.Module) -> nn.Module:
    """Return ``net`` in evaluation mode, with random weights and running statistics."""
    for p in net.parameters():
        # Convolutions without a norm neither saturate the tanh nor fade out.
        nn.init.normal_(p, 0, p[0].numel() ** -0.5 if p.dim() == 4 else 0.3)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)) and module.running_mean is not None:
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)) and module.weight is not None:
            nn.init.normal_(module.weight, 1, 0.3)
    return net.eval()


def image(size: tuple[int, int], channels: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(1, channels, *size, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)


def in_double(net: nn.Module) -> nn.Module:
    return copy.deepcopy(net).double()
