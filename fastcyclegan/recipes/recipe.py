"""What the engine needs of a recipe: the phases of an iteration, and what they work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn


class Forward(Protocol):
    """How a phase calls the networks of its recipe, by name: the engine decides which of them go together."""

    def __getitem__(self, name: str) -> nn.Module:
        """Return network ``name``, to be called by itself."""

    def __call__(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Return what each network makes of each of its images [N, C, H, W]: as many for each network."""

    def in_any_order(self, names: Sequence[str]) -> bool:
        """Whether it does not matter in what order and company images go through these networks."""


@dataclass(frozen=True)
class Inputs:
    """What an iteration, or a part of one, works on: pictures of both domains [N, C, H, W], the numbers that
    ``decide`` gave, on their device, and, in the discriminators' phase, the fakes that the pools show, by
    domain."""

    A: Tensor
    B: Tensor
    numbers: dict[str, Tensor]
    pooled: dict[str, Tensor] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> Inputs:
        """Return the samples [start, stop)."""
        numbers = {name: values[..., start:stop] for name, values in self.numbers.items()}
        pooled = {side: images[start:stop] for side, images in self.pooled.items()}
        return Inputs(self.A[start:stop], self.B[start:stop], numbers, pooled)


@dataclass(frozen=True)
class Phase:
    """One update: the networks it trains, the ones it freezes meanwhile, and its losses [k], whose sum is
    minimised.

    ``begin`` does what the samples of a batch have to do together before they may go in parts.
    """

    name: str
    trains: tuple[str, ...]
    freezes: tuple[str, ...]
    losses: Callable[[Forward, Inputs], Tensor]
    begin: Callable[[Inputs], Inputs] = lambda inputs: inputs
