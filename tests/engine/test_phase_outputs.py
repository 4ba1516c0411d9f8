"""Tests of phases in other orders than CycleGAN's: shared forwards, repeated phases, updates in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine, cuda_graph
from fastcyclegan.engine.phase_optimizer import PhaseOptimizer
from fastcyclegan.kernels import WorkingCopies
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.networks import ModelConfig
from fastcyclegan.settings.optim import OptimConfig
from fastcyclegan.testing import (
    assert_same_bits,
    make_engine,
    parameters_that_count,
    random_batch,
    relative_error,
    seeded_networks,
)
from tests.recipes.toys import Pix2PixOrder, pix2pix_step

CPU, LR, ITERATIONS = torch.device("cpu"), 2e-4, 20
SMALL: dict[str, Any] = {"netG": "resnet_1blocks", "ngf": 4, "ndf": 4, "netD": "n_layers", "n_layers_D": 1}


def networks(
    dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[Pix2PixOrder, dict[str, nn.Module]]:
    torch.manual_seed(1)
    recipe = Pix2PixOrder(model=ModelConfig(model="pix2pix_order", **{**SMALL, **settings}))
    return recipe, {name: net.to(dtype) for name, net in recipe.build_networks().items()}


def adam(nets: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.Adam(net.parameters(), LR, (0.5, 0.999)) for name, net in nets.items()}


@pytest.mark.parametrize(
    ("settings", "options", "batch", "rounds"),
    [
        ({}, {}, 1, 1),
        ({}, {}, 3, 2),
        ({}, {"micro_batch": 2}, 3, 1),
        ({}, {"micro_batch": 1}, 3, 2),
        # G runs once for both phases: a second forward would change its running statistics, and its dropout.
        ({"norm": "batch"}, {}, 2, 1),
        ({"use_dropout": True}, {}, 1, 1),
        ({}, {"overlap": "phases"}, 1, 1),
    ],
    ids=["one round", "D twice", "parts", "parts, D twice", "batch norm", "dropout", "no overlap"],
)
def test_the_order_of_pix2pix_equals_plain_pytorch(
    settings: dict[str, Any], options: dict[str, Any], batch: int, rounds: int
) -> None:
    recipe, nets = networks(**settings)
    recipe.rounds = rounds
    plain = copy.deepcopy(nets)
    optimizers, plan = adam(plain), Plan(0, 9, 9, batch, paired=True)
    engine = Engine(recipe, nets, OptimConfig(lr=LR), CPU, options=EngineConfig(**options))
    assert recipe.loss_names == ("D_fake", "D_real", "G_GAN", "G_L1")
    assert recipe.generator_losses == ("G_GAN", "G_L1")
    for n in range(ITERATIONS):
        images = random_batch(16, plan, n, dtype=torch.float64)
        torch.manual_seed(n)
        expected = pix2pix_step(plain, optimizers, images.A, images.B, rounds)
        torch.manual_seed(n)
        losses = engine.step(images, LR)
        assert relative_error(losses, torch.stack([expected[name] for name in recipe.loss_names])) < 1e-9
    for name, net in plain.items():
        ours = dict(engine.nets[name].named_parameters())
        for key, p in parameters_that_count(net).items():
            assert relative_error(ours[key], p) < 1e-9, f"{name}.{key}"
        for key, buffer in net.named_buffers():
            assert relative_error(engine.nets[name].get_buffer(key), buffer) < 1e-9, f"{name}.{key}"


def test_a_graph_replays_a_shared_forward_and_repeated_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "WARM_UP", 1)
    plan, engines = Plan(0, 9, 9, paired=True), []
    for options, more in ((EngineConfig(graph="on"), {"capture": RecordedGraph()}), (EngineConfig(), {})):
        recipe, nets = networks(torch.float32)
        recipe.rounds = 2
        engines.append(Engine(recipe, nets, OptimConfig(lr=LR), CPU, options=options, **more))
    for n in range(4):
        losses = [engine.step(random_batch(16, plan, n), LR) for engine in engines]
        assert_same_bits("losses", *losses)
    assert engines[0].graphs is not None
    assert engines[0].graphs.captured == 1
    for name, net in engines[0].nets.items():
        for key, value in net.state_dict().items():
            assert_same_bits(f"{name}.{key}", value, engines[1].nets[name].state_dict()[key])


def test_kernels_read_the_weights_that_the_phase_before_has_updated() -> None:
    """In 16 bits, the kernels read rounded copies of the weights, which an update makes out of date."""
    losses, plan = [], Plan(0, 9, 9, paired=True)
    for keeps_copies in (True, False):
        recipe, nets = networks(torch.float32, impl="triton")
        engine = Engine(recipe, nets, OptimConfig(lr=0.1), CPU, "bf16")
        assert list(engine.working_copies) == ["D", "G"]
        if not keeps_copies:  # every use rounds the weights anew
            engine.working_copies = {}
        losses.append(torch.stack([engine.step(random_batch(16, plan, n), 0.1) for n in range(2)]))
    assert_same_bits("losses", *losses)


def test_copies_are_updated_where_a_later_phase_may_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch does not count the changes that fused Adam makes on a GPU, so the engine must."""
    events: list[str] = []

    def traced(engine: Engine) -> list[str]:
        names = {id(copies): name for name, several in engine.working_copies.items() for copies in several}
        phases = {id(optimizer): name for name, optimizer in engine.phase_optimizers.items()}
        refresh, step = WorkingCopies.refresh, PhaseOptimizer.step

        def refreshed(copies: WorkingCopies) -> None:
            events.append(f"copy {names[id(copies)]}")
            refresh(copies)

        def stepped(optimizer: PhaseOptimizer) -> None:
            events.append(f"update {phases[id(optimizer)]}")
            step(optimizer)

        monkeypatch.setattr(WorkingCopies, "refresh", refreshed)
        monkeypatch.setattr(PhaseOptimizer, "step", stepped)
        events.clear()
        with dry_run():
            engine.step(random_batch(16, Plan(0, 9, 9, paired=True), 0), LR)
        monkeypatch.undo()
        return [event for n, event in enumerate(events) if event != events[n - 1] or not n]

    recipe, nets = networks(torch.float32, impl="triton")
    recipe.rounds = 2
    engine = Engine(recipe, nets, OptimConfig(), CPU, "bf16")
    once = ["update D", "copy D"]
    assert traced(engine) == ["copy D", "copy G", *once, *once, "update G"]
    # CycleGAN's second phase needs no weights that the first updates, so one pass copies everything.
    model = ModelConfig(**{**SMALL, "impl": "triton"})
    assert traced(make_engine(seeded_networks(model), precision="bf16")) == ["copy ", "update G", "update D"]
