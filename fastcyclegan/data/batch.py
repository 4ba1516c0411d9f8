"""What a loader gives and a training step takes: a batch of both domains."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastcyclegan.data.sample_plan import Sample


@dataclass(frozen=True)
class Batch:
    """Images of both domains, [N, C, H, W] in channels_last memory, in [-1, 1], on the device, and what
    their samples decided.
    """

    A: Tensor
    B: Tensor
    paths_A: list[str]
    paths_B: list[str]
    samples: list[Sample]
