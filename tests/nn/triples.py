"""Helpers for the tests of chains: a network by kernels, by the reference and in float64, and parity."""

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
    """Return a network computed by the kernels, the same by the reference, and the reference in float64."""
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
    """Check our result, the first of ``results``, by the parity rule against the reference and float64.

    Use it for images of 16 pixels or more: a norm over 2 x 2 pixels can make a rounding error of either side
    large at random.
    """
    assert_parity(name, *results, torch.float32)


def launches(net: nn.Module, x: Tensor) -> int:
    with dry_run() as run:
        net(x)
    return run.counts.launches.total()
