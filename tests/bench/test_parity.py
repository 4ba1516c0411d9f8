"""The judge of training steps: the official order and ours pass, in both precisions; a step that computes something else does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from parity import EXACT, Difference, Judge, require
from providers import PROVIDERS, TrainStep, Unserved, generator, plain_networks, train_step

from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.data.plan import Plan
from fastcyclegan.testing import random_batch, relative_error, seeded_networks

SMALL = ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8)
UNCOMPILED = [name for name, provider in PROVIDERS.items() if provider.mode is None and not provider.strict]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(plain_networks(SMALL), [random_batch(32, Plan(0, 9, 9), n) for n in range(2)], "cpu", LossConfig(), SMALL)


def step_of(name: str, judge: Judge, fault: bool = False) -> TrainStep:
    try:
        return train_step(name, judge.nets, "cpu", judge.loss, config=SMALL, fault=fault)
    except Unserved as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", UNCOMPILED)
def test_what_is_right_passes(judge: Judge, name: str) -> None:
    require(name, judge.judge(name, step_of(name, judge)))


@pytest.mark.parametrize("name", UNCOMPILED)
def test_a_planted_fault_does_not(judge: Judge, name: str) -> None:
    """In bf16 too, where the bounds are wide: the losses and pictures of the first iteration say it."""
    step = step_of(name, judge, fault=True)
    # Under another name, or the official order's faulty run would become its own yardstick.
    verdicts = {d.what: d.holds for d in judge.judge("faulty", step)}
    assert not verdicts["losses of iteration 1"]
    assert not verdicts["pictures of iteration 1"]
    with pytest.raises(AssertionError, match=r"relative error .* against float64, allowed"):
        require("faulty", judge.judge("faulty", step_of(name, judge, fault=True)))


def test_what_is_not_finite_does_not_hold() -> None:
    assert Difference("losses", 0.5, 0.5, 1.0, 0.0, 0.0).holds
    assert not Difference("losses", float("inf"), float("inf"), float("inf"), 0.0, 0.0).holds


def test_in_float64_ours_is_the_official_order(judge: Judge) -> None:
    assert judge.mathematics(size=24) < EXACT


def test_a_wrong_learning_rate_is_seen_in_the_weights(judge: Judge) -> None:
    step = step_of("ours", judge)
    for optimizer in step.optimizers:
        optimizer.step = partial(with_twice_the_rate, optimizer, optimizer.step)  # type: ignore[method-assign]
    verdicts = {d.what: d.holds for d in judge.judge("ours", step)}
    assert verdicts["losses of iteration 1"]
    assert not any(verdicts[f"way of the weights of {name}"] for name in judge.nets)


def with_twice_the_rate(optimizer: torch.optim.Optimizer, step: Callable[[], Any]) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 2
    step()


def test_the_plain_networks_are_nothing_of_ours_with_the_same_weights() -> None:
    plain, ours = plain_networks(SMALL, seed=3), seeded_networks(SMALL, seed=3)
    assert all(type(net).__module__ == "fastcyclegan.reference" for net in plain.values())
    for name, net in ours.items():
        assert all(torch.equal(a, b) for a, b in zip(plain[name].state_dict().values(), net.state_dict().values(), strict=True))


def test_generators_of_all_providers_give_the_same_picture() -> None:
    net, x = plain_networks(SMALL)["G_AB"], torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        truth = net.double()(x.double())
    net.float()
    for name in UNCOMPILED:
        try:
            run, precision = generator(name, net, "cpu", ngf=8, n_blocks=1)
        except Unserved:
            continue
        assert relative_error(run(x), truth) < (1e-5 if precision == "fp32" else 0.1)
        faulty, _ = generator(name, net, "cpu", fault=True, ngf=8, n_blocks=1)
        assert relative_error(faulty(x), truth) > 0.1
