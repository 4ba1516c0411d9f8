"""The batch of images that a loader yields and a training step consumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fastcyclegan.data.sample_plan import Sample


@dataclass(frozen=True)
class Batch:
    """One batch: the images of each domain, their paths, and the samples that they come from.

    The domains are A and B; a batch of single images only has A. Images are [N, C, H, W] in channels_last
    memory, in [-1, 1], on the device.
    """

    images: dict[str, Tensor]
    paths: dict[str, list[str]]
    samples: list[Sample]

    @classmethod
    def of(cls, A: Tensor, B: Tensor, paths_A: list[str], paths_B: list[str], samples: list[Sample]) -> Batch:
        """Return a batch of both domains."""
        return cls({"A": A, "B": B}, {"A": paths_A, "B": paths_B}, samples)

    @property
    def A(self) -> Tensor:
        return self.images["A"]

    @property
    def B(self) -> Tensor:
        return self.images["B"]

    @property
    def paths_A(self) -> list[str]:
        return self.paths["A"]

    @property
    def paths_B(self) -> list[str]:
        return self.paths["B"]

    def with_images(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return this batch with ``change`` applied to the images of each domain."""
        return replace(self, images={side: change(images) for side, images in self.images.items()})
