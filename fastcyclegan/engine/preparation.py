"""What is made of a recipe's networks before the first iteration: where and how they lie, what PyTorch's
compiler does for them, and copies of their weights as the kernels read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastcyclegan.engine.batching import NetworkCalls
from fastcyclegan.engine.choices import EngineChoices
from fastcyclegan.engine.phase_optimizer import PhaseOptimizer
from fastcyclegan.kernels import WorkingCopies
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.recipes.recipe import Compile, Phase, Recipe, uncompiled


def prepare_networks(
    recipe: Recipe, nets: Mapping[str, nn.Module], device: torch.device
) -> dict[str, nn.Module]:
    """Return ``nets`` on ``device`` in channels_last; those that are differentiated twice leave the
    kernels."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    prepared = {}
    for name, net in nets.items():
        prepared[name] = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in recipe.twice_differentiated:
        set_impl(prepared[name], "reference")
    return prepared


def check_phases(phases: Sequence[Phase], nets: Mapping[str, nn.Module], overlapping: bool) -> None:
    """Raise ValueError for phases that an engine over ``nets`` cannot run, naming the first."""
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise ValueError(f"Engine: phases must have names of their own, got {', '.join(names)}")
    if overlapping and len(phases) != 2:
        raise ValueError(f"Engine: two phases may overlap, got {len(phases)}")
    for phase in phases:
        if not phase.trains:
            raise ValueError(f"Engine: phase {phase.name} trains no network")
        for name in (*phase.trains, *phase.freezes):
            if name not in nets:
                raise ValueError(f"Engine: phase {phase.name} has no network {name} among {', '.join(nets)}")


def network_calls(
    choices: EngineChoices,
    nets: Mapping[str, nn.Module],
    fixed_sizes: bool,
    log: Callable[[str], None],
) -> NetworkCalls:
    """Return how ``nets`` are called: each itself, or what PyTorch's compiler makes of it."""
    called: dict[str, Any] = dict(nets)
    for name, net in nets.items():
        if choices.compiles(name):
            _guard_freezing()
            called[name] = torch.compile(net, dynamic=_dynamic(fixed_sizes))
    allowed = {"batching": choices.batching, "pairing": choices.pairing, "singly": choices.singly}
    return NetworkCalls(nets, called, **allowed, log=log)


def loss_compiler(choices: EngineChoices, fixed_sizes: bool) -> Compile:
    """Return what makes the losses' arithmetic faster: where the kernels compute the networks, the compiler
    is left with the losses.
    """
    if not choices.compiles_losses:
        return uncompiled

    def compiled(function: Any) -> Any:
        return torch.compile(function, dynamic=_dynamic(fixed_sizes))

    return compiled


def _dynamic(fixed_sizes: bool) -> bool | None:
    """Return torch.compile's ``dynamic``: not where all images have one size, else where it meets several."""
    return False if fixed_sizes else None


def working_copies(
    choices: EngineChoices, phases: Sequence[Phase], optimizers: Mapping[str, PhaseOptimizer]
) -> list[WorkingCopies]:
    """Return copies of what the kernels read, stacked for pairs: weights rounded, biases as they are; none
    where none are needed.
    """
    if choices.dtype == torch.float32 and not choices.pairing:
        return []
    weights, biases = [], []
    for phase in phases:
        if not choices.kernel_networks.issuperset(phase.trains):
            continue
        for place in optimizers[phase.name].places:
            if place[0].dim() == 4:
                weights.append(place)
            elif place[0].dim() == 1:
                biases.append(place)
    copies = []
    if weights:
        copies.append(WorkingCopies(weights, choices.dtype))
    if biases:
        copies.append(WorkingCopies(biases, torch.float32))
    return copies


def parameter_ids(nets: Iterable[nn.Module]) -> list[int]:
    """Return what tells the parameters of ``nets`` from others."""
    return [id(p) for net in nets for p in net.parameters()]


def _guard_freezing() -> None:
    """Let torch's compiler ask again whether parameters are frozen.

    torch 2.11 does not where a module's dicts are the same objects (pytorch issue 139476): a network that the
    user freezes or thaws between iterations would go on with the graph from before, and train what is frozen,
    or not what is thawed.
    """
    from torch._dynamo import config

    config.skip_tensor_guards_with_matching_dict_tags = False
