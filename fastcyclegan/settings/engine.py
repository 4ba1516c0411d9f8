"""The settings for how an iteration is executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastcyclegan.settings.checks import check_minimum, check_types


@dataclass(frozen=True)
class EngineConfig:
    """How an iteration is executed. Every choice computes the same result."""

    #: Process all images of a stage in one pass per network. auto: if that does not change the result (not
    #: with batch norm); off: never.
    batching: Literal["auto", "off"] = "auto"
    #: Run both generators as one network, and likewise both discriminators. auto: if fastcyclegan's kernels
    #: compute them; on: always (for debugging); off: never.
    pairing: Literal["auto", "on", "off"] = "auto"
    #: Work that runs concurrently on a GPU. wgrad: the weight gradients; phases: the discriminators' phase as
    #: well; auto: wgrad if the iteration is a CUDA graph.
    overlap: Literal["auto", "wgrad", "phases", "off"] = "auto"
    #: Replay each iteration as one CUDA graph. auto: with --compile on a GPU, unless the iteration cannot be
    #: captured; on: stop with an error if it cannot be captured.
    graph: Literal["auto", "on", "off"] = "auto"
    #: Run each batch in parts of this many images and add up their gradients. The result is that of the whole
    #: batch, but only the memory for one part is needed.
    micro_batch: int | None = None
    #: Mark the parts of an iteration with NVTX ranges for Nsight (on a GPU).
    nvtx: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_minimum(self, 1, "micro_batch")
