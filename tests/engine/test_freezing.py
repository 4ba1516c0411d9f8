"""Compiled networks that are frozen and unfrozen between iterations train like uncompiled ones."""

from __future__ import annotations

import functools

import pytest
import torch

from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.testing import make_engine, random_batch, relative_error, seeded_networks

TINY = ModelConfig(netG="resnet_0blocks", ngf=2, ndf=2, netD="pixel")


def freeze(engine: Engine, frozen: bool) -> None:
    for name in ("G_AB", "D_A"):
        engine.nets[name].requires_grad_(not frozen)


def weights(engine: Engine, name: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in engine.nets[name].parameters()]).clone()


@pytest.mark.parametrize(
    ("first", "then"), [(0, 3), (2, 4)], ids=["frozen first, unfrozen later", "frozen in between"]
)
def test_a_compiled_network_that_is_frozen_and_unfrozen(
    first: int, then: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled network trains like an uncompiled one, and does not change while it is frozen.

    By itself, torch 2.11's compiler does not check whether a parameter is frozen. The test uses float64, so
    that rounding is not a factor.
    """
    torch._dynamo.reset()
    # This tests which graphs are compiled, not how fast they are, and Inductor would take minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    start = seeded_networks(TINY, dtype=torch.float64)
    compiled, plain = (make_engine(start, compiled=compiled) for compiled in (True, False))
    initial = {name: weights(compiled, name) for name in compiled.nets}
    for n in range(6):
        batch = random_batch(8, Plan(0, 9, 9), n, dtype=torch.float64)
        for engine in (compiled, plain):
            if n in (first, then):
                freeze(engine, n == first)
        before = {name: weights(compiled, name) for name in compiled.nets}
        assert relative_error(compiled.step(batch, 2e-4), plain.step(batch, 2e-4)) < 1e-9, n
        unchanged = {name for name in compiled.nets if torch.equal(before[name], weights(compiled, name))}
        assert unchanged == ({"G_AB", "D_A"} if first <= n < then else set()), n
    assert not any(torch.equal(initial[name], weights(compiled, name)) for name in compiled.nets)
