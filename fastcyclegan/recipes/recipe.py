"""The interface between a recipe, which says what is trained and by which losses, and all that runs it.

A recipe is asked for its networks and their names, and for the phases of an iteration. A phase is a function
from images to losses and to what later phases want of it; nothing of an iteration stays in the recipe but its
image pools.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastcyclegan.config import ModelConfig
from fastcyclegan.data.batch import Batch

F = TypeVar("F", bound=Callable[..., Tensor])
Compile = Callable[[F], F]
"""Makes a faster function of one that computes losses, such as torch.compile."""
Translate = Callable[[str, Tensor], Tensor]
"""Runs the generator of a name on images [N, C, H, W]."""


def uncompiled(function: F) -> F:
    """Return ``function`` as it is."""
    return function


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
    """What a phase works on: images of both domains [N, C, H, W], the numbers that ``decide`` gave, on their
    device, and images of earlier phases by name: those that the phase wants, as its ``prepare`` returns them.
    """

    A: Tensor
    B: Tensor
    numbers: dict[str, Tensor]
    earlier: dict[str, Tensor] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> Inputs:
        """Return the samples [start, stop)."""
        numbers = {name: values[..., start:stop] for name, values in self.numbers.items()}
        earlier = {name: images[start:stop] for name, images in self.earlier.items()}
        return Inputs(self.A[start:stop], self.B[start:stop], numbers, earlier)


@dataclass(frozen=True)
class PhaseResult:
    """The losses of a phase [k], whose sum is minimised, and images [N, C, H, W] for later phases by name,
    detached.

    Each loss is a mean over the samples: of a batch in parts the losses are weighted by the parts' sizes.
    """

    losses: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)


def unprepared(inputs: Inputs) -> Inputs:
    """Return ``inputs`` as they are."""
    return inputs


@dataclass(frozen=True)
class Phase:
    """One update: the networks it trains, those it freezes in its forward, and the function that computes it.

    A network that it calls and does not train it must freeze, or detach what that makes: another phase would
    take those gradients for its own. ``wants`` names the outputs of earlier phases that it gets. ``prepare``
    does what the samples of a batch have to do together before they may go in parts; ``run`` is called for
    each part.
    """

    name: str
    trains: tuple[str, ...]
    freezes: tuple[str, ...]
    run: Callable[[Forward, Inputs], PhaseResult]
    wants: tuple[str, ...] = ()
    prepare: Callable[[Inputs], Inputs] = unprepared


class Recipe(Protocol):
    """What is trained, and how: see ``CycleGANRecipe`` for one.

    The engine asks for phases, decisions, state and who generates; runs and files for names, panels, samples
    and new networks. ``registry.make_recipe`` says which recipe a configuration means.
    """

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks."""

    @property
    def networks_title(self) -> str:
        """How a message calls them, such as "the four of a CycleGAN"."""

    @property
    def official_names(self) -> Mapping[str, str]:
        """What the official code calls each of them in its files."""

    @property
    def generators(self) -> tuple[str, ...]:
        """Those of them that make images: what users keep, and what running averages are worth having of."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses, in the order in which the phases return them."""

    @property
    def generator_losses(self) -> tuple[str, ...]:
        """Those of them that train generators: a plateau of their sum lowers the learning rate."""

    @property
    def loss_panels(self) -> Mapping[str, tuple[str, ...]]:
        """The losses that are drawn together, by the titles of their panels."""

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        """Networks whose gradient is differentiated again, which torch.compile and the kernels do not
        support."""

    @property
    def phases_may_overlap(self) -> bool:
        """Whether there are two phases, of which the second needs nothing of the first but its outputs: not
        the weights after its update.
        """

    def build_networks(self, config: ModelConfig) -> dict[str, nn.Module]:
        """Return the networks by name, initialised, in the order of creation that fixes what a seed gives."""

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        """Return the phases of an iteration, in order, each of another name. ``compile_loss`` makes their
        losses' arithmetic faster. May be called more than once.
        """

    def anew(self) -> Recipe:
        """Return a recipe with the same settings, before its first iteration."""

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Settle on the host all that chance decides for ``batch``; every entry has one column a sample.

        Called once for each iteration, in their order.
        """

    def is_steady(self, batch: Batch) -> bool:
        """Whether an iteration with ``batch`` needs no decision of the host, so that a graph can hold it."""

    def generator(self, target: str) -> str:
        """Return the name of the generator that makes images of domain ``target``, "A" or "B". Raises
        UserError where there is none.
        """

    def samples(self, translate: Translate, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Return a row of the grid of samples by its columns' names, from one image of each domain."""

    def state_dict(self) -> dict[str, Any]:
        """Return what later iterations depend on besides networks and optimizers; its tensors are live."""

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what ``state_dict`` gave, on ``device``."""
