"""Prepare a recipe's networks before the first iteration.

The networks are moved to the device and, if requested, compiled with torch.compile. Their weights are copied
into the form that the kernels read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fastcyclegan.engine.batching import NetworkCalls
from fastcyclegan.engine.choices import EngineChoices
from fastcyclegan.engine.devices import ensure_user_name
from fastcyclegan.engine.phase_optimizer import PhaseOptimizer
from fastcyclegan.kernels import WorkingCopies
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.recipes.recipe import Compile, Phase, Recipe, RecipeError, uncompiled

LOGGED = ("iteration", "epoch", "lr", "it/s", "images/s")
"""The names of the values that a record has besides the losses."""


def prepare_networks(
    recipe: Recipe, nets: Mapping[str, nn.Module], device: torch.device
) -> dict[str, nn.Module]:
    """Return ``nets`` on ``device`` in channels_last.

    Networks that are differentiated twice are set to run without the kernels.
    """
    ensure_user_name()  # torch's optimizers import a part of its compiler
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    prepared = {}
    for name, net in nets.items():
        prepared[name] = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in recipe.twice_differentiated:
        set_impl(prepared[name], "reference")
    return prepared


def check_phases(phases: Sequence[Phase], nets: Mapping[str, nn.Module], overlapping: bool) -> None:
    """Raise RecipeError for the first of ``phases`` that an engine over ``nets`` cannot run."""
    known: dict[str, Phase] = {}
    for phase in phases:
        if known.setdefault(phase.name, phase) != phase:
            names = ", ".join(each.name for each in phases)
            raise RecipeError(f"phases that differ must have unique names, got {names}")
    if not any(phase.trains for phase in phases):
        raise RecipeError("no phase trains a network")
    _check_losses(list(known.values()))
    if overlapping and len(phases) != 2:
        raise RecipeError(f"overlapping requires two phases, got {len(phases)}")
    for phase in phases:
        _check_networks(phase, nets)


def _check_networks(phase: Phase, nets: Mapping[str, nn.Module]) -> None:
    for member in ("trains", "freezes", "losses", "wants"):
        if not isinstance(getattr(phase, member), tuple):
            raise RecipeError(f"{member} of phase {phase.name} must be a tuple of names")
    for name in (*phase.trains, *phase.freezes):
        if name not in nets:
            raise RecipeError(f"networks of phase {phase.name} must be among {', '.join(nets)}, got {name}")
    for name in phase.trains:
        if name in phase.freezes:
            raise RecipeError(f"phase {phase.name} both trains and freezes {name}")


def _check_losses(phases: Sequence[Phase]) -> None:
    """Raise RecipeError unless each phase that trains networks names its losses, each a name of its own."""
    owners: dict[str, str] = {}
    for phase in phases:
        if phase.trains and not phase.losses:
            raise RecipeError(f"phase {phase.name} trains networks, so it must name its losses")
        for name in phase.losses:
            owner = owners.setdefault(name, phase.name)
            if owner != phase.name or phase.losses.count(name) > 1:
                raise RecipeError(f"the loss {name} is named twice, in {owner} and {phase.name}")
            if name in LOGGED:
                raise RecipeError(f"phase {phase.name} has a loss called {name}, as another logged value is")


def network_calls(
    choices: EngineChoices,
    nets: Mapping[str, nn.Module],
    fixed_sizes: bool,
    log: Callable[[str], None],
) -> NetworkCalls:
    """Return an object that calls each of ``nets``, either directly or compiled with torch.compile."""
    called: dict[str, Any] = dict(nets)
    for name, net in nets.items():
        if choices.compiles(name):
            _guard_freezing()
            called[name] = torch.compile(net, dynamic=_dynamic(fixed_sizes))
    allowed = {"batching": choices.batching, "pairing": choices.pairing, "singly": choices.singly}
    return NetworkCalls(nets, called, **allowed, log=log)


def loss_compiler(choices: EngineChoices, fixed_sizes: bool) -> Compile:
    """Return a function that compiles the arithmetic of a loss if ``choices.compiles_losses`` is true.

    In that case the kernels compute the networks, and only the losses are left for torch.compile. Otherwise
    the function returns its argument unchanged.
    """
    if not choices.compiles_losses:
        return uncompiled

    def compiled(function: Any) -> Any:
        return torch.compile(function, dynamic=_dynamic(fixed_sizes))

    return compiled


def _dynamic(fixed_sizes: bool) -> bool | None:
    """Return the ``dynamic`` argument of torch.compile.

    It is False if all images have the same size. Otherwise it is None, which lets torch.compile decide when
    it encounters several sizes.
    """
    return False if fixed_sizes else None


def working_copies(
    choices: EngineChoices,
    optimizers: Mapping[str, PhaseOptimizer],
    trains: Mapping[str, Sequence[str]],
    *,
    together: bool,
) -> dict[str, list[WorkingCopies]]:
    """Create copies of the weights and biases in the form that the kernels read, by phase.

    ``trains`` are the networks that each phase trains. If ``together`` is set, because no phase needs the
    weights that another has updated before it, the copies of all phases are made together, under the name "".
    There are none for networks that the kernels do not compute, or if no copies are needed.
    """
    if choices.dtype == torch.float32 and not choices.pairing:
        return {}
    places: dict[str, list[list[nn.Parameter]]] = {}
    for name, optimizer in optimizers.items():
        if choices.kernel_networks.issuperset(trains[name]):
            places.setdefault("" if together else name, []).extend(optimizer.places)
    return {name: _copies_of(each, choices.dtype) for name, each in places.items()}


def _copies_of(places: Sequence[list[nn.Parameter]], dtype: torch.dtype) -> list[WorkingCopies]:
    """Create copies of parameters, grouped by ``places``.

    The weights of networks that run as a pair are stacked, and so are their biases. Weights are rounded to
    ``dtype``, in which layers compute; biases stay in fp32.
    """
    weights = [place for place in places if place[0].dim() == 4]
    biases = [place for place in places if place[0].dim() == 1]
    copies = []
    if weights:
        copies.append(WorkingCopies(weights, dtype))
    if biases:
        copies.append(WorkingCopies(biases, torch.float32))
    return copies


def parameter_ids(nets: Iterable[nn.Module]) -> list[int]:
    """Return the ids of all parameters of ``nets``, which show whether any of them was replaced."""
    return [id(p) for net in nets for p in net.parameters()]


def _guard_freezing() -> None:
    """Make torch.compile check at every call whether parameters are frozen.

    torch 2.11 skips this check if the dicts of a module are the same objects as before (pytorch issue
    139476). After the user froze or unfroze a network between iterations, the previous graph would run again:
    it would train frozen parameters, or not train unfrozen ones.
    """
    from torch._dynamo import config

    config.skip_tensor_guards_with_matching_dict_tags = False
