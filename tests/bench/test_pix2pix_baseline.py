"""Parity of pix2pix with its official training step: ours passes, and faults of every kind are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import parity, pix2pix_baseline, prove
from bench.baselines import BASELINES_BY_RECIPE, Baseline, plain_networks
from bench.official_order import OfficialPix2Pix
from bench.parity import EXACT, FIRST, STATISTICS, Judge, later, require
from bench.pix2pix_baseline import (
    KEPT,
    Kept,
    OfficialStep,
    pix2pix_config,
    translated_images,
)
from bench.pix2pix_baseline import plain_networks as plain_pix2pix
from bench.providers import TrainStep, train_step
from fastcyclegan.config import EngineConfig, with_changes
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.testing import random_batch
from tests.bench.small_steps import UNCOMPILED, step_of

TINY = {"netG": "unet_32", "ngf": 8, "ndf": 8}


def judge_of(**model: Any) -> Judge:
    config = pix2pix_config(**{**TINY, **model})
    plan = Plan(0, 9, 9, paired=True)
    return Judge(plain_networks(config), [random_batch(32, plan, n) for n in range(2)], "cpu", config)


@pytest.fixture(scope="module")
def pairs() -> Judge:
    return judge_of()


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"norm": "instance"},
        {"norm": "instance", "affine": True, "netD": "n_layers", "n_layers_D": 2},
        {"netG": "resnet_1blocks", "upsample": "resize", "netD": "pixel", "input_nc": 3},
    ],
)
def test_the_plain_networks_compute_the_same_in_float64(model: dict[str, Any]) -> None:
    judge = judge_of(**model)
    for net in judge.nets.values():
        assert not hasattr(net, "impl")
    assert judge.float64_difference() < EXACT


@pytest.mark.parametrize("name", UNCOMPILED)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_every_provider_passes(pairs: Judge, norm: str, name: str) -> None:
    judge = pairs if norm == "batch" else judge_of(norm=norm)
    compared = judge.judge(name, step_of(name, judge))
    require(name, compared)
    statistics = {d.quantity for d in compared if d.quantity.startswith(STATISTICS)}
    expected = {f"{STATISTICS} {when}" for when in (FIRST, later(2))}
    assert statistics == (expected if norm == "batch" else set())


@pytest.mark.parametrize("name", UNCOMPILED)
def test_an_injected_fault_is_noticed(pairs: Judge, name: str) -> None:
    """In bf16 the losses do not show it: their norm is that of the L1 distance, which hardly changes."""
    # With its own name, the faulty run of the official order would be compared with itself.
    failed = {d.quantity for d in pairs.judge("faulty", step_of(name, pairs, fault=True)) if not d.passes}
    assert {"images of iteration 1", "gradients of D"} <= failed


def other_momentum(step: TrainStep) -> None:
    for net in step.nets.values():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.11


@pytest.mark.parametrize("name", ["ours", "official_bf16"])
def test_wrong_running_statistics_are_noticed(pairs: Judge, name: str) -> None:
    step = step_of(name, pairs)
    other_momentum(step)
    failed = {d.quantity for d in pairs.judge("faulty", step) if not d.passes}
    assert failed == {f"{STATISTICS} {when}" for when in (FIRST, later(2))}


class RealFirst(OfficialPix2Pix):
    def backward_D(self) -> None:
        with torch.no_grad():
            self.netD(torch.cat((self.real_A, self.real_B), 1))
        super().backward_D()


class NotFrozen(OfficialPix2Pix):
    """Updates D after G, so that G learns from the old one."""

    def optimize_parameters(self) -> None:
        step = self.optimizer_D.step
        self.optimizer_D.step = lambda: None  # type: ignore[method-assign, assignment, return-value]
        super().optimize_parameters()
        self.optimizer_D.step = step  # type: ignore[method-assign]
        self.optimizer_D.step()


@pytest.mark.parametrize("order", [RealFirst, NotFrozen])
def test_another_order_is_noticed_in_float64(
    pairs: Judge, order: type[OfficialPix2Pix], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pix2pix_baseline, "OfficialPix2Pix", order)
    assert pairs.float64_difference() > 1e3 * EXACT


def test_losses_of_a_gradient_penalty_are_compared() -> None:
    config = with_changes(pix2pix_config(**TINY, norm="instance"), {"loss": {"gan_mode": "wgangp"}})
    batches = [random_batch(32, Plan(0, 9, 9, 2, paired=True), n) for n in range(2)]
    judge = Judge(plain_networks(config), batches, "cpu", config)
    assert "D_gp" in config.make_recipe().loss_names
    assert judge.float64_difference() < EXACT


# --- Generated images ---------------------------------------------------------------------------------------


def test_the_first_images_are_kept_in_order() -> None:
    kept, images = Kept(), torch.rand(KEPT + 5, 3, 4, 4)
    for part in images.split(3):
        kept.add(part)
    assert torch.equal(kept.first(KEPT), images[None, :KEPT])


def test_images_of_replayed_iterations_are_kept() -> None:
    config, plan = pix2pix_config(**TINY), Plan(0, 9, 9, paired=True)
    shown = []
    for graph in ("on", "off"):
        torch.manual_seed(0)
        recipe = config.make_recipe()
        options, capture = EngineConfig(graph=graph), RecordedGraph()  # type: ignore[arg-type]
        nets = recipe.build_networks()
        engine = Engine(
            recipe, nets, config.optim, torch.device("cpu"), options=options,
            capture=capture if graph == "on" else None,
        )  # fmt: skip
        fakes = translated_images(engine)
        for n in range(7):
            engine.step(random_batch(32, plan, n), 2e-4)
        shown.append(fakes(7))
    assert torch.equal(*shown)
    assert all(not torch.equal(a, b) for a, b in zip(shown[0][0, 1:], shown[0][0], strict=False))


# --- prove.py -----------------------------------------------------------------------------------------------


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": {**TINY, "no_dropout": True}}
    row = Baseline(plain_pix2pix, OfficialStep, translated_images, settings)
    monkeypatch.setitem(BASELINES_BY_RECIPE, "pix2pix", row)


@pytest.mark.usefixtures("_tiny")
def test_prove_compares_pairs_of_one_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "pix2pix", "--no_compile", "--seconds", "1", "--size", "32"]
    assert prove.main([*arguments, "--output", str(tmp_path / "proof.png")]) == 0
    logged = capsys.readouterr().out
    assert "training Pix2Pix at 32x32" in logged
    assert "200 pairs (not counting held-out images) from the built-in shapes" in logged
    assert "running statistics of iteration 2" in logged
    assert "iterations/s" in logged
    assert "FAILS" not in logged


def test_built_in_pairs_show_one_scene() -> None:
    """Outside the shapes, both images of a pair have the same background."""
    config = pix2pix_config(**TINY)
    options = prove.parse(["--model", "pix2pix"])
    batches, _ = prove.batches_of(options, config, 32, lambda line: None)
    for batch in batches:
        assert (batch.A - batch.B).abs().amax(1).lt(1e-6).double().mean() > 0.3


@pytest.mark.usefixtures("_tiny")
def test_prove_shows_no_speed_of_a_faulty_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "pix2pix", "--no_compile", "--seconds", "1", "--size", "32", "--plant-fault"]
    assert prove.main([*arguments, "--output", str(tmp_path / "proof.png")]) == 1
    logged = capsys.readouterr().out
    assert "PARITY FAILS" in logged
    assert "iterations/s" not in logged


def test_parity_is_checked_at_the_size_of_the_generator() -> None:
    assert parity.least_size(pix2pix_config()) == 256
    assert train_step("official", judge_of().nets, "cpu", pix2pix_config(**TINY)).precision == "fp32"
