"""Iterations compiled with torch.compile, and errors for phases that cannot run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from fastcyclegan.config import EngineConfig, LossConfig, OptimConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine, why_not_compiled
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.recipe import Compile, Phase, uncompiled
from fastcyclegan.testing import (
    assert_parity,
    copy_of,
    is_cancelled_bias,
    make_engine,
    random_batch,
    relative_error,
    seeded_networks,
)
from tests.engine.orders import LR, SMALL, run_engine, run_reference

#: torch.compile compiles nothing that the C++ kernels compute.
PLAIN = dataclasses.replace(SMALL, impl="reference")


def gradients(engine: Engine, batch: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Run one iteration and return the gradient that each optimizer received for each parameter."""
    names = {id(p): (net, key) for net, module in engine.nets.items() for key, p in module.named_parameters()}
    received: dict[tuple[str, str], torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        received.update(
            {names[id(p)]: p.grad.clone() for group in optimizer.param_groups for p in group["params"]}
        )

    for optimizer in engine.optimizers.values():
        optimizer.register_step_pre_hook(keep)
    engine.step(batch, LR)
    return received


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_gradients_pass_the_parity_rule(precision: str) -> None:
    """Compare compiled and uncompiled gradients in one precision with those in float64.

    In float64, the uncompiled step equals the official one. The weights and biases of a layer in both
    networks of a phase are compared as one vector, because the error of a bias of 3 numbers depends on luck.
    """
    if reason := why_not_compiled(torch.device("cpu")):
        pytest.skip(reason)
    start, plan = seeded_networks(PLAIN), Plan(0, 9, 9)
    loss = LossConfig()
    batch, exact = (random_batch(32, plan, 0, dtype=dtype) for dtype in (torch.float32, torch.float64))
    truth = gradients(make_engine(copy_of(start, torch.float64), loss), exact)
    yardstick = gradients(make_engine(start, loss, precision=precision), batch)
    engine = make_engine(start, loss, precision=precision, compiled=True)
    before = counters["stats"]["unique_graphs"]
    ours = dict(gradients(engine, batch))  # a copy, because the hooks remain active
    compiled = counters["stats"]["unique_graphs"]
    run_engine(engine, [random_batch(32, plan, n) for n in range(1, 4)])
    # The first iteration compiles, and no later one.
    assert counters["stats"]["unique_graphs"] == compiled > before
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    layers: dict[str, list[tuple[str, str]]] = {}
    for net, key in truth:
        if not is_cancelled_bias(start[net], key):
            layers.setdefault(f"{net[0]}.{key.rpartition('.')[0]}", []).append((net, key))
    assert len(layers) > 10
    for layer, keys in layers.items():
        assert_parity(
            layer, *(torch.cat([of[key].flatten() for key in keys]) for of in (ours, yardstick, truth)), dtype
        )


def test_networks_compiled_for_a_cpu_receive_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given two images at once, torch 2.13 computes NaN gradients (in bf16, with 3 blocks or more, with AMX).

    A test that shows this would spend minutes on compiling.
    """
    monkeypatch.setattr("fastcyclegan.engine.choices.may_be_miscompiled", lambda device, precision: True)
    sizes: list[int] = []
    start = seeded_networks(SMALL, dtype=torch.float64)
    engine, plain = make_engine(start, compiled=True), make_engine(start)
    for name, net in engine.nets.items():
        engine.calls.called[name] = lambda x, net=net: (
            sizes.append(len(x)) or net(x)
        )  # the network itself, not compiled
    batch = random_batch(16, Plan(0, 9, 9, 3), 0, dtype=torch.float64)
    assert relative_error(engine.step(batch, LR), plain.step(batch, LR)) < 1e-9
    assert set(sizes) == {1}
    assert len(sizes) == 3 * (3 * 2 + 2 + 4)
    assert "one image at a time" in engine.describe()["batching"]


def test_compiled_wgangp_trains() -> None:
    """torch.compile cannot differentiate twice, so the discriminators stay uncompiled, as the table shows."""
    if reason := why_not_compiled(torch.device("cpu")):
        pytest.skip(reason)
    # The generators have no residual blocks, because other tests compile full ones.
    start = seeded_networks(dataclasses.replace(PLAIN, netG="resnet_0blocks"))
    loss, plan = LossConfig(gan_mode="wgangp", lambda_identity=0), Plan(0, 9, 9)
    engine = make_engine(start, loss, compiled=True)
    truth = run_reference(
        copy_of(start, torch.float64), [random_batch(16, plan, 0, dtype=torch.float64)], loss
    )[0]
    yardstick = run_reference(copy_of(start), [random_batch(16, plan, 0)], loss)[0]
    ours = run_engine(engine, [random_batch(16, plan, 0)])[0]
    values = (
        torch.tensor([losses[name] for name in engine.recipe.loss_names])
        for losses in (ours, yardstick, truth)
    )
    assert_parity("losses", *values, dtype=torch.float32)
    assert "D_A D_B" in engine.describe()["compiled"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "D"}, "phases that differ must have unique names, got D, D"),
        ({"losses": ()}, "phase G trains networks, so it must name its losses"),
        ({"losses": ("a", "a", "b", "c", "d", "e")}, "the loss a is named twice, in G and G"),
        ({"losses": ("D_A",)}, "the loss D_A is named twice, in G and D"),
        ({"trains": ("G",)}, "networks of phase G must be among G_AB, G_BA, D_B, D_A, got G"),
        ({"freezes": ("D",)}, "networks of phase G must be among .*, got D"),
    ],
    ids=[
        "duplicate name",
        "unnamed losses",
        "a name twice in a phase",
        "a name in two phases",
        "unknown network to train",
        "unknown network to freeze",
    ],
)
def test_phases_that_cannot_run_raise(change: dict[str, Any], message: str) -> None:
    class Wrong(CycleGANRecipe):
        def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
            first, second = super().phases(compile_loss)
            return dataclasses.replace(first, **change), second

    with pytest.raises(ValueError, match=message):
        Engine(Wrong(LossConfig()), seeded_networks(SMALL), OptimConfig(), torch.device("cpu"))


def test_phases_that_must_not_overlap_run_in_order() -> None:
    class InOrder(CycleGANRecipe):
        phases_may_overlap = False

    options = EngineConfig(overlap="phases")
    nets = seeded_networks(SMALL)
    engine = Engine(InOrder(LossConfig()), copy_of(nets), OptimConfig(), torch.device("cpu"), options=options)
    plain = make_engine(nets)
    batch = random_batch(16, Plan(0, 9, 9), 0)
    assert torch.equal(engine.step(batch, LR), plain.step(batch, LR))
    assert (
        engine.describe()["overlap"] == "no: a phase needs the weights that the phase before it has updated"
    )
