"""Check networks that a caller changed: whether they can be trained, and loaded again once they are saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fastcyclegan.checkpoints.run_files import differences
from fastcyclegan.config import TrainConfig
from fastcyclegan.errors import UserError


def require_trainable(nets: Mapping[str, nn.Module]) -> None:
    """Raise UserError if a parameter is not in float32, has no data, or belongs to several of ``nets``.

    Each phase of an iteration updates a parameter once, with the gradient of one network.
    """
    owners: dict[nn.Parameter, str] = {}
    for net_name, net in nets.items():
        for name, p in net.named_parameters():
            place = f"{net_name}.{name}"
            if p.dtype != torch.float32:
                kind = str(p.dtype).removeprefix("torch.")
                raise UserError(f"{place} must be float32 to be trained, got {kind}: call {net_name}.float()")
            if p.is_meta:
                raise UserError(f"{place} has no data, because it is on the meta device")
            owner = owners.setdefault(p, place)
            if owner != place:
                raise UserError(f"{place} is also {owner}, but networks that share weights cannot be trained")


def why_not_loadable(nets: Mapping[str, nn.Module], config: TrainConfig) -> str:
    """Return how ``nets`` differ from the networks that ``config`` describes, or "" if they do not.

    If they do, what is saved cannot be loaded with that configuration.
    """
    with torch.device("meta"):
        described = config.make_recipe().build_networks()
    for name, net in nets.items():
        found = differences(described[name].state_dict(), net.state_dict())
        if found:
            return f"{name}.{found[0]}"
        if len(list(net.parameters())) < len(list(described[name].parameters())):
            return f"layers of {name} share weights"
    return ""
