"""How an iteration is to be run, decided once when an engine is made: the engine does what stands here, and
the summary tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastcyclegan.config import EngineConfig
from fastcyclegan.nn.networks import computed_by


@dataclass(frozen=True)
class Choices:
    """Where and how an engine runs its iterations. ``options`` are what was asked for: they tell a choice
    from a necessity.
    """

    device: torch.device
    precision: str
    compiled: bool
    """Whether PyTorch's compiler does what the kernels do not."""
    options: EngineConfig
    kernels: frozenset[str]
    """The networks that the kernels compute, by name."""
    batching: bool
    pairing: bool
    singly: bool
    """Whether networks are called with one image at a time."""
    graph: bool
    """Whether iterations are captured, once they are warm."""
    weight_stream: bool
    """Whether weight gradients have a stream of their own, beside the one that every iteration on a GPU runs
    on.
    """
    phase_stream: bool
    """Whether the second phase has."""
    compile_ahead: bool
    """Whether kernels are compiled before the first iteration that launches them."""


def choose(
    nets: Mapping[str, nn.Module],
    device: torch.device,
    precision: str,
    compiled: bool,
    options: EngineConfig,
    can_capture: bool,
) -> Choices:
    """Return what an engine over ``nets``, which are on ``device``, does of what ``options`` ask for."""
    on_gpu = device.type == "cuda"
    kernels = frozenset(name for name, net in nets.items() if computed_by(net) == "triton")
    # Of two images at once PyTorch's compiler for processors makes gradients that are not numbers (9 blocks,
    # bf16, torch 2.13).
    singly = compiled and device.type == "cpu" and not kernels
    graph = can_capture and (options.graph == "on" or (options.graph == "auto" and compiled))
    weights_beside = options.overlap in ("wgrad", "phases") or (options.overlap == "auto" and graph)
    return Choices(
        device=device,
        precision=precision,
        compiled=compiled,
        options=options,
        kernels=kernels,
        batching=options.batching == "auto" and not singly,
        pairing=options.pairing == "on" or (options.pairing == "auto" and bool(kernels)),
        singly=singly,
        graph=graph,
        weight_stream=on_gpu and weights_beside and bool(kernels),
        phase_stream=on_gpu and options.overlap == "phases",
        compile_ahead=on_gpu and bool(kernels),
    )
