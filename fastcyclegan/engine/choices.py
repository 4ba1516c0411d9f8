"""How an iteration is to be run, decided once when an engine is made: the engine does what stands here, and
the summary tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastcyclegan.config import EngineConfig
from fastcyclegan.engine.batching import why_not_batched
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.recipes.recipe import Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What layers compute in, by the name of the precision."""


@dataclass(frozen=True)
class EngineChoices:
    """Where and how an engine runs its iterations. ``options`` are what was asked for: they tell a choice
    from a necessity.
    """

    device: torch.device
    precision: str
    compiled: bool
    """Whether PyTorch's compiler does what the kernels do not."""
    options: EngineConfig
    kernel_networks: frozenset[str]
    """The networks that the kernels compute, by name."""
    eager_networks: tuple[str, ...]
    """The networks that nothing but PyTorch computes, because they are differentiated twice."""
    batching: bool
    pairing: bool
    singly: bool
    """Whether networks are called with one image at a time."""
    graph: bool
    """Whether iterations are captured, once they are warm."""
    weight_stream: bool
    """Whether weight gradients have a stream of their own, beside the one that every iteration on a GPU runs
    on."""
    overlap_phases: bool
    """Whether the second phase runs between forward and backward of the first."""
    phase_stream: bool
    """Whether it has a stream of its own."""
    compile_ahead: bool
    """Whether kernels are compiled before the first iteration that launches them."""

    @property
    def dtype(self) -> torch.dtype:
        """What layers compute in."""
        return DTYPES[self.precision]

    def compiles(self, name: str) -> bool:
        """Whether PyTorch's compiler makes network ``name`` faster."""
        return self.compiled and name not in self.kernel_networks and name not in self.eager_networks

    @property
    def compiles_losses(self) -> bool:
        """Whether it is left with the losses, because the kernels compute the networks."""
        return self.compiled and bool(self.kernel_networks)


def require_possible(
    nets: Mapping[str, nn.Module], precision: str, options: EngineConfig, can_capture: bool
) -> None:
    """Raise ValueError for what an engine cannot do."""
    if precision not in DTYPES:
        raise ValueError(f"Engine: precision must be {' or '.join(DTYPES)}, got {precision!r}")
    if options.graph == "on" and not can_capture:
        raise ValueError("Engine: graph='on' needs a CUDA GPU")
    if options.micro_batch is None:
        return
    for name, net in nets.items():
        reason = why_not_batched(name, net)
        if reason:
            raise ValueError(f"Engine: micro_batch would change the result: {reason}")


def choose(
    recipe: Recipe,
    nets: Mapping[str, nn.Module],
    device: torch.device,
    precision: str,
    compiled: bool,
    options: EngineConfig,
    can_capture: bool,
) -> EngineChoices:
    """Return what an engine over ``nets``, which are on ``device``, does of what ``options`` ask for."""
    on_gpu, overlap = device.type == "cuda", options.overlap
    kernels = frozenset(name for name, net in nets.items() if computed_by(net) == "triton")
    has_kernels = len(kernels) > 0
    # Of two images at once PyTorch's compiler for processors makes gradients that are not numbers (9 blocks,
    # bf16, torch 2.13).
    singly = compiled and device.type == "cpu" and not has_kernels
    asked_for_graph = options.graph == "on" or (options.graph == "auto" and compiled)
    graph = can_capture and asked_for_graph
    overlap_phases = overlap == "phases" and recipe.phases_may_overlap
    weights_beside = overlap in ("wgrad", "phases") or (overlap == "auto" and graph)
    return EngineChoices(
        device=device,
        precision=precision,
        compiled=compiled,
        options=options,
        kernel_networks=kernels,
        eager_networks=recipe.twice_differentiated,
        batching=options.batching == "auto" and not singly,
        pairing=options.pairing == "on" or (options.pairing == "auto" and has_kernels),
        singly=singly,
        graph=graph,
        weight_stream=on_gpu and weights_beside and has_kernels,
        overlap_phases=overlap_phases,
        phase_stream=on_gpu and overlap_phases,
        compile_ahead=on_gpu and has_kernels,
    )
