"""Choose how an engine runs its iterations: batching, pairing, streams, graphs and compiling.

The choices are made once, when the engine is created. The engine acts on them, and ``summary.py`` describes
them to the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastcyclegan.engine.batching import why_not_batched
from fastcyclegan.nn.layer_checks import has_triton_layers
from fastcyclegan.nn.networks import computed_by
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.settings.engine import EngineConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Maps the name of each precision to the dtype that layers compute in."""


@dataclass(frozen=True)
class EngineChoices:
    """Where and how an engine runs its iterations.

    ``options`` contains the settings as they were requested, which shows the choices that the user made.
    """

    device: torch.device
    precision: str
    compiled: bool
    """Whether torch.compile handles what the kernels do not compute."""
    options: EngineConfig
    kernel_networks: frozenset[str]
    """Names of the networks of which the Triton kernels compute layers."""
    cpp_networks: frozenset[str]
    """Names of the networks that the C++ kernels compute, together with PyTorch's convolutions."""
    eager_networks: tuple[str, ...]
    """Names of the networks that run in eager PyTorch because they are differentiated twice."""
    batching: bool
    pairing: bool
    singly: bool
    """Whether networks are called with one image at a time."""
    graph: bool
    """Whether iterations are captured in a CUDA graph after they have warmed up."""
    weight_stream: bool
    """Whether weight gradients run on a separate stream, alongside the stream of the iteration."""
    overlap_phases: bool
    """Whether the second phase runs between the forward and backward passes of the first."""
    phase_stream: bool
    """Whether the second phase runs on a separate stream."""
    compile_ahead: bool
    """Whether kernels are compiled before the first iteration that launches them."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that layers compute in."""
        return DTYPES[self.precision]

    def compiles(self, name: str) -> bool:
        """Return whether torch.compile compiles network ``name``."""
        return self.compiled and name not in self.eager_networks and not self.uses_kernels([name])

    def uses_kernels(self, names: Iterable[str]) -> bool:
        """Return whether kernels compute all these networks. They can add to gradients in place."""
        return all(name in self.kernel_networks or name in self.cpp_networks for name in names)

    @property
    def compiles_losses(self) -> bool:
        """Whether torch.compile compiles only the losses, because the kernels compute the networks."""
        return self.compiled and bool(self.kernel_networks)


def require_possible(
    nets: Mapping[str, nn.Module], precision: str, options: EngineConfig, can_capture: bool
) -> None:
    """Raise ValueError for a precision or option that an engine does not support."""
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


def may_be_miscompiled(device: torch.device, precision: str) -> bool:
    """Return whether torch.compile may compute wrong gradients for two images at once.

    It does for 9 blocks in bf16 on a processor with AMX (torch 2.13), and does not on one with AVX-512 alone.
    README.md has the runs that would show whether oneDNN's kernels for AMX are the reason.
    """
    return device.type == "cpu" and precision == "bf16" and bool(torch.cpu._is_amx_tile_supported())


def choose(
    recipe: Recipe,
    nets: Mapping[str, nn.Module],
    device: torch.device,
    precision: str,
    compiled: bool,
    options: EngineConfig,
    can_capture: bool,
) -> EngineChoices:
    """Choose how to run ``nets``, which are already on ``device``, given the requested ``options``.

    ``can_capture`` is whether iterations can be captured at all.
    """
    on_gpu, overlap = device.type == "cuda", options.overlap
    kernels = frozenset(
        name for name, net in nets.items() if computed_by(net) == "triton" and has_triton_layers(net)
    )
    cpp = frozenset(name for name, net in nets.items() if computed_by(net) == "cpp")
    has_kernels = len(kernels) > 0
    left = [name for name in nets if name not in kernels | cpp and name not in recipe.twice_differentiated]
    singly = compiled and bool(left) and may_be_miscompiled(device, precision)
    graph_requested = options.graph == "on" or (options.graph == "auto" and compiled)
    graph = can_capture and graph_requested
    overlap_phases = overlap == "phases" and recipe.phases_may_overlap
    weights_beside = overlap in ("wgrad", "phases") or (overlap == "auto" and graph)
    return EngineChoices(
        device=device,
        precision=precision,
        compiled=compiled,
        options=options,
        kernel_networks=kernels,
        cpp_networks=cpp,
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
