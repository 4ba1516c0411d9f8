"""The interface between a recipe, which defines networks and losses, and the code that trains it.

A recipe provides its networks and their names, and the phases of an iteration. A phase is a function that
takes images, and returns losses and the outputs that later phases need. A recipe keeps no data from an
iteration except in its image pools.
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
"""A function that makes a loss function faster, for example torch.compile."""
Translate = Callable[[str, Tensor], Tensor]
"""A function that runs the generator with a given name on images [N, C, H, W]."""


def uncompiled(function: F) -> F:
    """Return ``function`` unchanged."""
    return function


class Forward(Protocol):
    """Calls the networks of a recipe by name. The engine decides which calls are combined."""

    def __getitem__(self, name: str) -> nn.Module:
        """Return the network ``name``, so that it can be called by itself."""

    def __call__(self, inputs: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
        """Run each named network on its images [N, C, H, W], and return the outputs by name.

        All networks must be given the same number of images.
        """

    def in_any_order(self, names: Sequence[str]) -> bool:
        """Return whether images can be passed through these networks in any order and in any combination."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a phase.

    ``A`` and ``B`` are the images [N, C, H, W] of the two domains. ``numbers`` are the values that ``decide``
    returned, on the device of the images. ``earlier`` contains, by name, the outputs of earlier phases that
    this phase wants, or what ``prepare`` replaced them with.
    """

    A: Tensor
    B: Tensor
    numbers: dict[str, Tensor]
    earlier: dict[str, Tensor] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> Inputs:
        """Return the inputs of the samples [start, stop)."""
        numbers = {name: values[..., start:stop] for name, values in self.numbers.items()}
        earlier = {name: images[start:stop] for name, images in self.earlier.items()}
        return Inputs(self.A[start:stop], self.B[start:stop], numbers, earlier)


@dataclass(frozen=True)
class PhaseResult:
    """The losses and the output images of a phase.

    ``losses`` [k] are minimised as a sum. Each is a mean over the samples, so if a batch is run in parts,
    losses are weighted by the sizes of the parts. ``outputs`` are detached images [N, C, H, W] by name.
    """

    losses: Tensor
    outputs: dict[str, Tensor] = field(default_factory=dict)


def unprepared(inputs: Inputs) -> Inputs:
    """Return ``inputs`` unchanged."""
    return inputs


@dataclass(frozen=True)
class Phase:
    """One update: the networks to train, the networks to freeze in its forward, and the function to run.

    A network that the phase calls but does not train must be frozen, or its outputs detached; otherwise its
    gradients would be used in the update of another phase. ``wants`` names the outputs of earlier phases that
    this phase receives. ``prepare`` does the work that needs all samples of a batch together. ``run`` is
    called for each part of a batch.
    """

    name: str
    trains: tuple[str, ...]
    freezes: tuple[str, ...]
    run: Callable[[Forward, Inputs], PhaseResult]
    wants: tuple[str, ...] = ()
    prepare: Callable[[Inputs], Inputs] = unprepared


class Recipe(Protocol):
    """Defines what is trained and how; ``CycleGANRecipe`` is an example.

    The engine uses the phases, the decisions, the state and the generators' names. The code for runs and
    files uses the other names, the loss panels, the samples and ``build_networks``. ``registry.make_recipe``
    selects the recipe for a configuration.
    """

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the networks."""

    @property
    def networks_title(self) -> str:
        """The phrase for the networks in messages, for example "the four of a CycleGAN"."""

    @property
    def official_names(self) -> Mapping[str, str]:
        """The name of each network in the files of the official code."""

    @property
    def generators(self) -> tuple[str, ...]:
        """The networks that generate images: those that users keep, and that are worth averaging."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses, in the order in which the phases return them."""

    @property
    def generator_losses(self) -> tuple[str, ...]:
        """The names of the losses that train generators.

        With the learning rate policy plateau, the rate is lowered when the sum of these losses stops falling.
        """

    @property
    def loss_panels(self) -> Mapping[str, tuple[str, ...]]:
        """The losses that are plotted together, by the title of their panel."""

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        """The networks whose gradients are differentiated again.

        torch.compile and the kernels do not support this.
        """

    @property
    def phases_may_overlap(self) -> bool:
        """Whether there are two phases, and the second only needs the outputs of the first.

        The second phase must not need the weights that the first one updates.
        """

    def build_networks(self, config: ModelConfig) -> dict[str, nn.Module]:
        """Build and initialise the networks in a fixed order, so that a seed determines their weights."""

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        """Return the phases of an iteration in order, each with a different name.

        ``compile_loss`` compiles the arithmetic of their losses. This method can be called more than once.
        """

    def new_instance(self) -> Recipe:
        """Return a new recipe with the same settings, in the state before its first iteration."""

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Make all random decisions for ``batch`` on the host, and return them with one column per sample.

        This method is called once per iteration, in order.
        """

    def is_steady(self, batch: Batch) -> bool:
        """Return whether a CUDA graph can replay an iteration with ``batch`` without help from the host."""

    def generator(self, target: str) -> str:
        """Return the name of the generator for images of domain ``target``, "A" or "B".

        Raises UserError if there is no such generator.
        """

    def samples(self, translate: Translate, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Translate one image of each domain, and return one row of the sample grid by column name."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later iterations depend on, apart from networks and optimizers.

        The tensors in it are not copies.
        """

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the state that ``state_dict`` returned, on ``device``."""
