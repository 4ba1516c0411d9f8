"""The parity check accepts the official training step and ours in both precisions.

It rejects a step that computes anything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench import parity, providers
from bench.baselines import plain_networks
from bench.flat_images import is_flat
from bench.parity import EXACT, FORWARD, Difference, Judge, Trace, differences, require
from bench.providers import TrainStep, train_step
from fastcyclegan.config import TrainConfig, with_changes
from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import engine
from fastcyclegan.engine.host_inputs import HostInputs
from fastcyclegan.testing import random_batch
from tests.bench.small_steps import SMALL, UNCOMPILED, step_of


@pytest.mark.parametrize("name", UNCOMPILED)
def test_a_correct_step_passes(judge: Judge, name: str) -> None:
    require(name, judge.judge(name, step_of(name, judge)))


@pytest.mark.parametrize("name", UNCOMPILED)
def test_a_step_with_an_injected_fault_fails(judge: Judge, name: str) -> None:
    """A step with an injected fault is rejected because of the losses and images of the first iteration.

    This holds even in bf16, where the allowed error is large.
    """
    step = step_of(name, judge, fault=True)
    # With its own name, the faulty run of the official order would be compared with itself.
    verdicts = {d.quantity: d.passes for d in judge.judge("faulty", step)}
    assert not verdicts["losses of iteration 1"]
    assert not verdicts["images of iteration 1"]
    with pytest.raises(AssertionError, match=r"relative error .* against float64, allowed"):
        require("faulty", judge.judge("faulty", step_of(name, judge, fault=True)))


def test_losses_may_have_the_error_of_their_images() -> None:
    """Losses may have the error that is allowed for images.

    There are only eight losses, so those of the official order can be exact by accident.
    """

    def trace(of_losses: float, of_images: float) -> Trace:
        return Trace(
            {FORWARD[0]: torch.ones(8) * (1 + of_losses), FORWARD[1]: torch.ones(99) * (1 + of_images)}
        )

    official, truth = trace(0.0, 0.03), trace(0.0, 0.0)
    for error, passes in ((0.025, True), (0.035, False)):
        losses, _ = differences(trace(error, 0.0), [official], truth, torch.bfloat16)
        assert losses.passes == passes


def test_a_result_that_is_not_finite_fails() -> None:
    assert Difference("losses", 0.5, 0.5, 1.0, 0.0, 0.0).passes
    assert not Difference("losses", float("inf"), float("inf"), float("inf"), 0.0, 0.0).passes


def test_ours_equals_the_official_order_in_float64(judge: Judge) -> None:
    assert judge.float64_difference(size=24) < EXACT


class RateInFp32(HostInputs):
    """Host inputs that store the learning rate in fp32, the dtype in which a GPU's fused Adam reads it."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.lr = self.memory[:8].view(torch.float32)[:1].view(())


def test_float64_parity_allows_a_learning_rate_in_fp32(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "HostInputs", RateInFp32)
    assert judge.float64_difference(size=24) < EXACT
    monkeypatch.setattr(providers, "LR", 2e-4)
    assert judge.float64_difference(size=24) > 10 * EXACT


def flat_in_the_corner(domain: str, size: int) -> list[torch.Tensor]:
    """Return two images of the built-in dataset whose top left 32x32 pixels are all background.

    Each is fp32 [1, 3, size, size].
    """
    drawn = (
        torch.from_numpy(builtin.draw(domain, 1, "train", n)).permute(2, 0, 1)[None].float() / 127.5 - 1
        for n in range(40)
    )
    images = (F.interpolate(pixels, (size, size), mode="nearest-exact") for pixels in drawn)
    return list(itertools.islice((image for image in images if is_flat(image[0, :, :32, :32])), 2))


def built_in(size: int) -> Judge:
    pairs = zip(flat_in_the_corner("A", size), flat_in_the_corner("B", size), strict=True)
    batches = [
        replace(random_batch(size, Plan(0, 9, 9), n), images={"A": A, "B": B})
        for n, (A, B) in enumerate(pairs)
    ]
    return Judge(plain_networks(SMALL), batches, "cpu", SMALL)


def other_eps(step: TrainStep) -> None:
    norms = [module for module in step.nets["G_AB"].modules() if isinstance(module, torch.nn.InstanceNorm2d)]
    norms[2].eps = 1e-4


def zero_padding(step: TrainStep) -> None:
    block = step.nets["G_BA"].get_submodule("model.10.conv_block")
    assert isinstance(block.get_submodule("0"), torch.nn.ReflectionPad2d)
    block.add_module("0", torch.nn.ZeroPad2d(1))


def setting(name: str, value: Any) -> Callable[[TrainStep], None]:
    def plant(step: TrainStep) -> None:
        step.optimizers[0].param_groups[0][name] = value

    return plant


# A change of a loss in fastcyclegan's step, and another fault in it.
FAULTS: dict[str, tuple[dict[str, float], Callable[[TrainStep], None]]] = {
    "one eps 1e-4": ({}, other_eps),
    "zero padding in one layer": ({}, zero_padding),
    "cycle weight 10.001": ({"lambda_A": 10.001}, lambda step: None),
    # The weight is not 0, because that would also remove the names of the losses.
    "no identity": ({"lambda_identity": 1e-30}, lambda step: None),
    "Adam's eps 1e-7": ({}, setting("eps", 1e-7)),
    "Adam's beta2 0.9991": ({}, setting("betas", (0.5, 0.9991))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_float64_parity_detects_subtle_faults_on_built_in_images(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, plant = FAULTS[fault]

    def faulty(name: str, nets: Any, device: str, config: TrainConfig, *others: Any) -> TrainStep:
        if name == "ours":
            config = with_changes(config, {"loss": loss})
        step = train_step(name, nets, device, config, *others)
        if name == "ours":
            plant(step)
        return step

    monkeypatch.setattr(parity, "train_step", faulty)
    assert built_in(96).float64_difference() > 10 * EXACT


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_ours_equals_the_official_order_in_float64_on_built_in_images(size: int) -> None:
    assert built_in(size).float64_difference() < EXACT


def test_float64_parity_compares_two_iterations(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 parity compares only two iterations, even if the check has more batches.

    Rounding errors grow from one iteration to the next. Full networks have to stay within 1e-9 on a GPU as
    well, where the check runs four iterations.
    """
    seen: list[int] = []

    def counted(step: TrainStep, batches: Sequence[Batch]) -> Trace:
        seen.append(len(batches))
        return trace(step, batches)

    trace = Trace.of
    monkeypatch.setattr(Trace, "of", counted)
    assert replace(judge, batches=[*judge.batches, *judge.batches]).float64_difference(size=24) < EXACT
    assert seen == [2, 2]


@pytest.mark.parametrize("name", ["ours", "official_bf16"])
@pytest.mark.parametrize("factor", [2.0, 0.0])
def test_weight_changes_reveal_a_wrong_learning_rate(judge: Judge, name: str, factor: float) -> None:
    """The weight changes of every network show a learning rate that is twice as large, or 0.

    This holds even in bf16, where half of an update is rounding error, most of it in weights with tiny
    gradients.
    """
    step = step_of(name, judge)
    for optimizer in step.optimizers:
        optimizer.step = partial(with_another_rate, optimizer, optimizer.step, factor)  # type: ignore[method-assign]
    # With its own name, the faulty run of the official order would be compared with itself.
    verdicts = {d.quantity: d.passes for d in judge.judge("faulty", step)}
    assert verdicts["losses of iteration 1"]
    assert not any(verdicts[f"weight change of {net}"] for net in judge.nets)


def with_another_rate(optimizer: torch.optim.Optimizer, step: Callable[[], Any], factor: float) -> None:
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def test_later_iterations_in_16_bits_are_compared_from_their_starting_weights(judge: Judge) -> None:
    """In 16 bits, a later iteration is compared with float64 from the weights at its start.

    Earlier updates therefore do not matter. In this test the whole second iteration runs with other weights,
    and the float64 reference starts from the same ones.
    """
    step = train_step("official", judge.nets, "cpu", SMALL, torch.float64)
    run, runs = step.run, iter(range(9))

    def diverging(batch: Any) -> Any:
        if next(runs) == 1:
            for net in step.nets.values():
                for p in net.parameters():
                    p.data += 0.01 * torch.randn_like(p)
        return run(batch)

    torch.manual_seed(0)
    step.run = diverging
    trace = Trace.of(step, judge.batches)
    names = ("losses of iteration 2", "images of iteration 2")
    assert all(trace.error_of(name, judge.truth) < 1e-9 for name in FORWARD)
    assert all(trace.error_of(name, judge.truth) > 1e-3 for name in names)
    # The weights are recorded before the iteration, so a change to them during it is a fault and is detected.
    assert all(judge._with_own_truth(trace, "bf16").error_of(name, judge.truth) > 1e-3 for name in names)
    for start, net in zip(trace.starts[0].values(), step.nets.values(), strict=True):
        start.update(net.state_dict())
    again = train_step("official", judge.nets, "cpu", SMALL, torch.float64)
    for name, net in again.nets.items():
        net.load_state_dict(trace.starts[0][name])
    exact = Trace(
        {**trace.values, names[0]: again.run(judge.batches[1])[None].double(), names[1]: again.fakes(1)},
        trace.starts,
    )
    assert all(judge._with_own_truth(exact, "bf16").error_of(name, judge.truth) < 1e-12 for name in names)
    # In fp32, runs do not diverge, so all iterations are compared with the same float64 run.
    assert not judge._with_own_truth(Trace(trace.values, trace.starts), "fp32").own_truth
