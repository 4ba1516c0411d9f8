"""Helpers for the tests of chains: a network in three versions, and a comparison by the parity rule."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan import reference as ref
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.nn import networks
from fastcyclegan.testing import assert_parity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def network_triple(kind: str, **arguments: Any) -> list[nn.Module]:
    """Return one network three times: with our kernels, as the reference, and as the reference in float64."""
    torch.manual_seed(0)
    nets = [
        getattr(networks, kind)(**arguments, impl="triton").to(DEVICE),
        getattr(ref, kind)(**arguments).to(DEVICE),
    ]
    for p in nets[0].parameters():
        nn.init.normal_(p, 0, 0.2)
    nets[1].load_state_dict(nets[0].state_dict())
    return [*nets, copy.deepcopy(nets[1]).double()]


def outputs(nets: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    return [net(x.to(next(net.parameters()).dtype)) for net in nets]


def check_parity(name: str, results: Sequence[Tensor]) -> None:
    """Check the results of the three networks of ``network_triple`` by the parity rule.

    Use images of 16 pixels or more: a norm over 2 x 2 pixels can randomly make a rounding error of the
    kernels or of the reference large.
    """
    assert_parity(name, *results, torch.float32)


def launches(net: nn.Module, x: Tensor) -> int:
    with dry_run() as run:
        net(x)
    return run.counts.launches.total()
