"""The batch of images of both domains that a loader yields and a training step consumes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastcyclegan.data.sample_plan import Sample


@dataclass(frozen=True)
class Batch:
    """One batch of both domains: the images, their paths, and the samples that they come from.

    Images are [N, C, H, W] in channels_last memory, in [-1, 1], on the device.
    """

    A: Tensor
    B: Tensor
    paths_A: list[str]
    paths_B: list[str]
    samples: list[Sample]
