"""What the tests of chains share: a network on the kernels, in the reference and in float64, and the rule
that they are held to.
"""

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


def three(kind: str, **arguments: Any) -> list[nn.Module]:
    """One network on the kernels, the same in the reference, and that in float64."""
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


def hold(name: str, results: Sequence[Tensor]) -> None:
    """Hold ours, the first of ``results``, by the parity rule: to the reference, and to it in float64.

    Of images of 16 pixels or more: a norm of 2 x 2 makes a rounding error large by chance, in ours or in
    theirs.
    """
    assert_parity(name, *results, torch.float32)


def launches(net: nn.Module, x: Tensor) -> int:
    with dry_run() as run:
        net(x)
    return run.counts.launches.total()
