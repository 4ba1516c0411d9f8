"""Frozen networks: nothing in them changes, they cost no backward pass, and everything is restored."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.engine.frozen import FrozenNetworks
from fastcyclegan.testing import (
    make_engine,
    parameters_that_count,
    random_batch,
    relative_error,
    seeded_networks,
)

TINY = ModelConfig(netG="resnet_1blocks", ngf=4, ndf=4, netD="n_layers", n_layers_D=1, impl="triton")
GENERATORS, DISCRIMINATORS = ("G_AB", "G_BA"), ("D_A", "D_B")


def test_unfreezing_restores_what_was_there_before() -> None:
    """What the caller had frozen or set to eval mode stays like that."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout())
    net[0].requires_grad_(False)
    net[2].eval()
    frozen = FrozenNetworks({"G": net, "D": nn.Linear(1, 1)})
    frozen.set(["G"])
    assert frozen.names == ("G",)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(module.training for module in net.modules())
    frozen.set(["G", "D"])
    assert frozen.names == ("G", "D")
    frozen.set(["D"])
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert [module.training for module in net.modules()] == [True, True, True, False]
    frozen.set(())
    assert frozen.names == ()


def _bits(engine: Engine, name: str) -> list[torch.Tensor]:
    return [value.clone() for value in engine.nets[name].state_dict().values()]


def _same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("names", [("G_AB",), GENERATORS, ("D_A",), ("G_AB", "D_B"), DISCRIMINATORS])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_frozen_networks_do_not_change_and_the_others_do(names: tuple[str, ...], norm: str) -> None:
    """Running statistics of batch norm do not change either."""
    config = ModelConfig(netG="resnet_1blocks", ngf=2, ndf=2, netD="n_layers", n_layers_D=1, norm=norm)  # type: ignore[arg-type]
    engine = make_engine(seeded_networks(config))
    before = {name: _bits(engine, name) for name in engine.nets}
    for frozen in (names, ()):
        engine.frozen.set(frozen)
        for n in range(2):
            engine.step(random_batch(16, Plan(0, 9, 9), n), 2e-4)
        changed = {name for name in engine.nets if not _same(before[name], _bits(engine, name))}
        assert changed == set(engine.nets) - set(frozen)


def test_freezing_changes_nothing_for_the_trained_networks_in_the_first_iteration() -> None:
    """Their gradients, and so their weights, are those of an iteration in which everything trains.

    The test uses float64, so that rounding is not a factor.
    """
    config = ModelConfig(netG="resnet_1blocks", ngf=2, ndf=2, netD="pixel")
    nets = seeded_networks(config, dtype=torch.float64)
    batch = random_batch(16, Plan(0, 9, 9), 0, dtype=torch.float64)
    whole = make_engine(nets)
    losses = whole.step(batch, 2e-4)
    for names in (GENERATORS, ("G_BA", "D_A"), DISCRIMINATORS):
        engine = make_engine(nets)
        engine.frozen.set(names)
        assert relative_error(engine.step(batch, 2e-4), losses) < 1e-9
        for name in set(engine.nets) - set(names):
            theirs = parameters_that_count(whole.nets[name])
            for key, ours in parameters_that_count(engine.nets[name]).items():
                assert relative_error(ours, theirs[key]) < 1e-9, (name, key)


def _launches(frozen: tuple[str, ...], loss: LossConfig = LossConfig()) -> tuple[Counter[str], Counter[str]]:
    """Return the launches of an iteration by kernel, and the operations of each part of it.

    The networks run one by one, so that the launches of each of them count.
    """
    engine = make_engine(seeded_networks(TINY), loss, options=EngineConfig(pairing="off"))
    engine.frozen.set(frozen)
    batch = random_batch(32, Plan(0, 9, 9), 0)
    with dry_run() as run:
        engine.step(batch, 2e-4)
    return run.counts.launches, run.counts.parts


def _backward(launches: Counter[str]) -> int:
    return sum(count for name, count in launches.items() if "bwd" in name or "wgrad" in name)


def test_frozen_networks_cost_no_backward_pass() -> None:
    """Frozen generators leave no operation of their backward, and the discriminators' phase is what it was.

    A single frozen generator computes no gradients of weights: its images may still need gradients, because
    the other generator learns from what becomes of its own images.
    """
    whole, parts = _launches(())
    both, parts_both = _launches(GENERATORS)
    assert parts["G backward"] > 100
    assert parts_both["G backward"] == 0
    assert parts_both["G Adam"] == 0
    assert parts_both["D backward"] == parts["D backward"]
    one, _ = _launches(("G_AB",))
    assert _backward(both) < _backward(one) < _backward(whole)
    wgrad = "_reflect_conv_wgrad_kernel"
    assert one[wgrad] * 2 == whole[wgrad] > 0
    assert both[wgrad] == 0
    _, parts_D = _launches(DISCRIMINATORS)
    assert parts_D["D backward"] == parts_D["D Adam"] == 0
    assert parts_D["G backward"] == parts["G backward"]
