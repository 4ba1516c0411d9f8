"""The interface between a recipe, which defines networks and losses, and the code that trains it.

A recipe is a class derived from ``Recipe``, and its settings. It provides its networks and their names, and
the phases of an iteration. A phase is a function that takes images, and returns losses and the outputs that
later phases need. A recipe keeps no data from an iteration except in what ``state_dict`` returns.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.scan import Images
from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import Rule
from fastcyclegan.files.tensor_rules import like
from fastcyclegan.settings.data import DataConfig, Direction, Layout
from fastcyclegan.settings.recipe import LossSettings, ModelSettings

F = TypeVar("F", bound=Callable[..., Tensor])
Compile = Callable[[F], F]
"""A function that makes a loss function faster, for example torch.compile."""
Translate = Callable[[str, Tensor], Tensor]
"""A function that runs the network with a given name on images [N, C, H, W], as it is used after training."""
Settings = Mapping[str, Mapping[str, Any]]
"""Values of settings, by group and name."""
Shape = tuple[int, int, int]
"""[C, H, W] of an image."""


class RecipeError(UserError, ValueError):
    """A recipe does something that cannot be right. The message is for its author."""


@contextlib.contextmanager
def naming_recipe(recipe: Recipe) -> Iterator[None]:
    """Name ``recipe`` in the message about a mistake in it."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"the recipe {recipe.name}: {error}") from None


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

    ``images`` are those of the batch [N, C, H, W], by domain; single images are those of domain A.
    ``numbers`` are the values that ``decide`` returned, on the device of the images. ``earlier`` contains, by
    name, the outputs of earlier phases that this phase wants, or what ``prepare`` replaced them with.
    """

    images: dict[str, Tensor]
    numbers: dict[str, Tensor] = field(default_factory=dict)
    earlier: dict[str, Tensor] = field(default_factory=dict)

    @property
    def A(self) -> Tensor:
        return self.images["A"]

    @property
    def B(self) -> Tensor:
        return self.images["B"]

    @property
    def count(self) -> int:
        """The number of samples."""
        return next(iter(self.images.values())).shape[0]

    def part(self, start: int, stop: int) -> Inputs:
        """Return the inputs of the samples [start, stop)."""
        images = {side: values[start:stop] for side, values in self.images.items()}
        numbers = {name: values[..., start:stop] for name, values in self.numbers.items()}
        earlier = {name: values[start:stop] for name, values in self.earlier.items()}
        return Inputs(images, numbers, earlier)


_NO_LOSSES = torch.empty(0, dtype=torch.float32)


@dataclass(frozen=True)
class PhaseResult:
    """The losses and the outputs of a phase.

    ``losses`` [k], in the order of the phase's names, are minimised as a sum. Each is a mean over the
    samples, so if a batch is run in parts, losses are weighted by the sizes of the parts. ``outputs`` are
    images [N, C, H, W] by name. An output that is not detached keeps its graph, so a later phase that trains
    the same networks need not compute it again; a phase that trains others must detach it.
    """

    losses: Tensor = _NO_LOSSES
    outputs: dict[str, Tensor] = field(default_factory=dict)


def unprepared(inputs: Inputs) -> Inputs:
    """Return ``inputs`` unchanged."""
    return inputs


@dataclass(frozen=True)
class Phase:
    """One step of an iteration, which updates the networks that it ``trains``, if any.

    ``freezes`` names networks that it calls but does not train: they pass gradients on, but get none
    themselves, which saves time. ``losses`` names the losses that ``run`` returns, in order. ``wants`` names
    the outputs of earlier phases that this phase receives. ``prepare`` does the work that needs all samples
    of a batch together. ``run`` is called for each part of a batch, with the weights as the phases before
    left them. The sum of the losses is multiplied by ``factor`` before it is minimised.

    A phase can come several times in an iteration, and then shares one optimizer. Phases that differ need
    different names. A phase that trains nothing computes outputs for others.
    """

    name: str
    run: Callable[[Forward, Inputs], PhaseResult]
    trains: tuple[str, ...] = ()
    freezes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    wants: tuple[str, ...] = ()
    prepare: Callable[[Inputs], Inputs] = unprepared
    factor: float = 1.0


class Recipe(ABC):
    """Defines what is trained and how; ``CycleGANRecipe`` is an example. CONTRIBUTING.md shows a small one.

    A recipe must have a ``name``, its ``networks`` and ``generators``, ``build_networks``, ``phases`` and
    ``samples``. Everything else has a default.
    """

    name: ClassVar[str]
    """The value of --model: small letters, digits and _. The entry point of a plug-in has the same name."""
    title: ClassVar[str]
    """What it is called in texts, and its Python class: letters and digits. Default: made from the name."""
    summary: ClassVar[str] = ""
    """What train.py does with it, in one sentence, for --help."""
    Model: ClassVar[type[ModelSettings]] = ModelSettings
    """The class of its settings of networks, which cannot change during a run. Each is a flag."""
    Loss: ClassVar[type[LossSettings]] = LossSettings
    """The class of its other settings. Each is a flag."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Settings of ``Loss`` that cannot change during a run, because its state depends on them."""
    layouts: ClassVar[tuple[Layout, ...]] = ("unaligned",)
    """The layouts of images that it can train on, the default first."""
    defaults: ClassVar[Settings] = {}
    """Other defaults for settings of all runs, by group and name: {"optim": {"lr": 1e-3}}."""
    builtin: ClassVar[Settings | None] = None
    """Its defaults for the built-in dataset, or None if it cannot train on that."""
    shown_settings: ClassVar[tuple[str, ...]] = ()
    """The settings of ``Model`` that the repr of its Python class shows."""

    networks: ClassVar[tuple[str, ...]]
    """The names of the networks."""
    generators: ClassVar[tuple[str, ...]]
    """The networks that generate images: those that users keep."""
    directions: ClassVar[Mapping[Direction, str]] = {}
    """The network that translates from the model's domain A to B, and that from B to A, if there are any.
    Single images are translated "AtoB"."""
    translates_as_trained: ClassVar[bool] = False
    """Whether the generators translate as they do in training, with dropout and with the batch statistics of
    each image by itself, unless a user asks for evaluation mode."""
    phases_may_overlap: ClassVar[bool] = False
    """Whether there are two phases, and the second only needs the outputs of the first, but not the weights
    that the first one updates."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        name = vars(cls).get("name")
        if isinstance(name, str) and "title" not in vars(cls):
            cls.title = "".join(part.capitalize() for part in name.split("_"))

    def __init__(self, loss: LossSettings | None = None, model: ModelSettings | None = None) -> None:
        self.loss: Any = self.Loss() if loss is None else loss
        self.model: Any = self.Model(model=self.name) if model is None else model

    # --- What every recipe must define ----------------------------------------------------------------------

    @abstractmethod
    def build_networks(self) -> dict[str, nn.Module]:
        """Build and initialise the networks in a fixed order, so that a seed determines their weights."""

    @abstractmethod
    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        """Return the phases of an iteration in order.

        ``compile_loss`` compiles the arithmetic of their losses. This method can be called more than once.
        """

    @abstractmethod
    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one row of the sample grid by column name, for one image [1, C, H, W] of each domain."""

    # --- Settings and images --------------------------------------------------------------------------------

    @classmethod
    def require_layout(cls, data: DataConfig) -> None:
        """Raise UserError if the recipe cannot train on images in the layout that ``data`` names."""
        if data.dataset_mode not in cls.layouts:
            fitting = " or ".join(f"--dataset_mode {layout} ({LAYOUTS[layout]})" for layout in cls.layouts)
            raise UserError(
                f"--model {cls.name} cannot train on images in the layout {data.dataset_mode}"
                f" ({LAYOUTS[data.dataset_mode]}); it needs {fitting}"
            )

    @classmethod  # noqa: B027
    def check_settings(cls, data: DataConfig, model: Any, loss: Any) -> None:
        """Raise UserError if settings of different groups contradict each other."""

    @classmethod
    def builtin_for(cls, given: Mapping[str, Any]) -> Settings | None:
        """Return the defaults for the built-in dataset if the settings ``given`` are given besides.

        ``given`` has settings by name, which may be the texts of a command line and need not be valid.
        """
        return cls.builtin

    @property
    def requirements(self) -> ImageRequirements:
        """What the networks require of their images."""
        return ImageRequirements()

    def require_networks(self, nets: Any) -> None:
        """Raise RecipeError unless ``nets``, which ``build_networks`` returned, are its networks."""
        is_complete = isinstance(nets, dict) and set(nets) == set(self.networks)
        if not is_complete or not all(isinstance(net, nn.Module) for net in nets.values()):
            found = ", ".join(map(str, nets)) if isinstance(nets, dict) else type(nets).__name__
            raise RecipeError(
                f"the recipe {self.name}: build_networks must return the networks"
                f" {', '.join(self.networks)}, got {found}"
            )

    def mark_generators(self, nets: Mapping[str, nn.Module]) -> None:
        """Tell the generators among ``nets`` how they translate.

        That is the multiple to which images of other sizes are padded, unless a network knows it, and
        ``translates_as_trained``.
        """
        for name in self.generators:
            if name not in nets:
                continue
            if not hasattr(nets[name], "size_multiple"):
                nets[name].size_multiple = self.requirements.size_multiple  # type: ignore[assignment]
            nets[name].translates_as_trained = self.translates_as_trained  # type: ignore[assignment]

    @property
    def file_channels(self) -> Mapping[str, int]:
        """The numbers of channels of the images of each domain, by how messages name them.

        Images from files can only have 3 (colour) or 1 (gray).
        """
        channels = self.requirements.channels
        return {f"the number of channels of {side}": n for side, n in zip("AB", channels, strict=False)}

    @property
    def needs_equal_sizes(self) -> bool:
        """Whether the images of A and B of a sample must have the same size, also without cropping."""
        return False

    @property
    def numbers_per_sample(self) -> int:
        """How many random numbers in [0, 1) ``decide`` needs for each sample, in ``sample.numbers``."""
        return 0

    # --- Names ----------------------------------------------------------------------------------------------

    @property
    def official_names(self) -> Mapping[str, str]:
        """The name of each network in the names of weights files, by default its own name."""
        return {name: name for name in self.networks}

    @property
    def averaged(self) -> tuple[str, ...]:
        """The networks of whose weights ``--ema`` keeps running averages."""
        return self.generators

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses, in the order of the phases."""
        return tuple(dict.fromkeys(name for phase in self.phases() for name in phase.losses))

    @property
    def generator_losses(self) -> tuple[str, ...]:
        """The names of the losses that train generators.

        With the learning rate policy plateau, the rate is lowered when the sum of these losses stops falling.
        """
        training = [phase for phase in self.phases() if not set(phase.trains).isdisjoint(self.generators)]
        return tuple(dict.fromkeys(name for phase in training for name in phase.losses))

    @property
    def loss_panels(self) -> Mapping[str, tuple[str, ...]]:
        """The losses that are plotted together, by the title of their panel."""
        return {"losses": self.loss_names}

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        """The networks whose gradients are differentiated again.

        torch.compile and the kernels do not support this.
        """
        return ()

    @property
    def architecture(self) -> str:
        """The networks in a few words, for messages."""
        return f"the networks of {self.title}"

    def describe_networks(self, weights: Mapping[str, int]) -> str:
        """Return the networks' row of the table of a run. ``weights`` are their numbers of weights."""
        return ", ".join(f"{name} ({count:,} weights)" for name, count in weights.items())

    def rows(self) -> dict[str, str]:
        """Return further rows of the table of a run."""
        return {}

    def generator(self, direction: Direction) -> str:
        """Return the name of the network that translates in ``direction``, in terms of the model's domains.

        Raises UserError if there is none.
        """
        if direction not in self.directions:
            if not self.directions:
                raise UserError(
                    f"{self.title} does not translate images; its class makes them with sample in Python"
                )
            raise UserError(f"{self.title} only translates in one direction: that in which it was trained")
        return self.directions[direction]

    @property
    def discriminators(self) -> tuple[str, ...]:
        """The networks that are no generators."""
        return tuple(name for name in self.networks if name not in self.generators)

    # --- Decisions on the host, and what is carried to the next iteration -----------------------------------

    def new_instance(self) -> Recipe:
        """Return a new recipe with the same settings, in the state before its first iteration."""
        return type(self)(self.loss, self.model)

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Make all random decisions for ``batch`` on the host.

        Returns tensors [..., N] by name, with one column for each of the batch's N samples.

        The random numbers of sample n are ``batch.samples[n].numbers``. This method is called once per
        iteration, in order.
        """
        return {}

    def is_steady(self, batch: Batch) -> bool:
        """Return whether a CUDA graph can replay an iteration with ``batch`` without help from the host."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later iterations depend on, apart from networks and optimizers.

        It consists of numbers, texts, tensors, dicts and lists. Unless there are ``state_rules``, it has the
        same form from the start on. The tensors in it are not copies.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:  # noqa: B027
        """Restore the state that ``state_dict`` returned, on ``device``."""

    def state_rules(self, sizes: Mapping[str, tuple[int, int]] | None) -> Mapping[Any, Rule]:
        """Return a rule for each entry of a saved ``state_dict``, which is checked before it is used.

        ``sizes`` are the (height, width) of the images of each domain, or None if they may differ. By
        default, an entry must have the types and shapes that ``state_dict`` returns now.
        """
        return {name: like(value) for name, value in self.state_dict().items()}

    def state_bytes(self, shapes: Mapping[str, Shape]) -> int:
        """Return how many bytes ``state_dict`` will need with images of ``shapes``, by domain."""
        tensors = [value for value in self.state_dict().values() if isinstance(value, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    # --- After training -------------------------------------------------------------------------------------

    def generate(self, run: Translate, count: int, noise: torch.Generator) -> Tensor:
        """Return ``count`` new images [N, C, H, W] in [-1, 1], made from random numbers of ``noise``.

        ``run`` calls a network by its name. Raises UserError if the recipe translates images instead.
        """
        raise UserError(f"{self.title} makes no images from noise: it has no sample, but translates images")

    def builtin_scores(self, translate: Translate, images: Images, device: torch.device) -> list[str]:
        """Return lines about how well the networks do on the held-out images of the built-in dataset."""
        return []


LAYOUTS: Mapping[str, str] = {
    "unaligned": "two domains: --dataroot with trainA and trainB, or --data_A and --data_B",
    "aligned": "pairs: --dataroot with train, or --data_A and --data_B with images of the same names",
    "single": "one folder: --data",
}
"""What each layout is, and the flags that name images in it."""
