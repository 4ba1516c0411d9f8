"""The settings that every recipe has. A recipe derives from these two classes and adds its own.

A field is a flag of the command line, and the comment above it is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fastcyclegan.settings.checks import check_types


@dataclass(frozen=True)
class ModelSettings:
    """Settings of a recipe's networks. They determine the weights, so they cannot change during a run."""

    #: Recipe: what is trained, and how. The default trains CycleGAN; a plug-in can add others. --help --model
    #: NAME shows the flags of another recipe.
    model: str = "cycle_gan"
    #: Implementation of the networks. triton: fastcyclegan's kernels on an NVIDIA GPU; cpp: its kernels on a
    #: CPU, for every layer that they support; reference: PyTorch's operators; auto: the kernels on an NVIDIA
    #: GPU, and on a CPU those that are faster than PyTorch's operators.
    impl: Literal["auto", "cpp", "triton", "reference"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        """Return the settings that cannot stay as they are when the setting ``name`` gets this ``value``.

        They get their defaults, for example when a saved run is resumed.
        """
        return ()


@dataclass(frozen=True)
class LossSettings:
    """Settings of a recipe's losses, and of what else it trains with. They can change when a run is resumed,
    unless the recipe lists them as ``fixed``.
    """

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        """As in ``ModelSettings``."""
        return ()
