"""Learning rates equal those of the official code and of torch's schedulers."""

from __future__ import annotations

import random

import pytest
import torch

from fastcyclegan.config import OptimConfig
from fastcyclegan.training.lr_schedule import make_schedule

# Factors of the official linear rule around its turning points, in both phases, for 100 + 100 epochs.
TABLE = {
    "end": {1: 1.0, 99: 1.0, 100: 1.0, 101: 0.990099, 150: 0.504950, 199: 0.019802, 200: 0.009901},
    "start": {1: 1.0, 99: 1.0, 100: 0.990099, 101: 0.980198, 150: 0.495050, 199: 0.009901, 200: 0.0},
}


@pytest.mark.parametrize("phase", ["end", "start"])
def test_linear_corners(phase: str) -> None:
    schedule = make_schedule(OptimConfig(lr=2.0, lr_phase=phase))
    for epoch, factor in TABLE[phase].items():
        assert schedule.lr(epoch) == pytest.approx(2.0 * factor, abs=1e-6)


def torch_rates(scheduler: str, epochs: int, phase: str, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stepper = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **options)
    rates = []
    for _ in range(epochs):
        optimizer.step()
        if phase == "start":
            stepper.step()
        rates.append(optimizer.param_groups[0]["lr"])
        if phase == "end":
            stepper.step()
    return rates


@pytest.mark.parametrize("phase", ["end", "start"])
def test_step_and_cosine_against_torch(phase: str) -> None:
    step = make_schedule(OptimConfig(lr=1.0, lr_policy="step", lr_decay_iters=7, lr_phase=phase))
    assert [step.lr(n) for n in range(1, 31)] == pytest.approx(
        torch_rates("StepLR", 30, phase, step_size=7, gamma=0.1)
    )
    cosine = make_schedule(
        OptimConfig(lr=1.0, lr_policy="cosine", n_epochs=10, n_epochs_decay=20, lr_phase=phase)
    )
    # The cosine covers both halves of the training. In the official code, it ends with the first half.
    assert [cosine.lr(n) for n in range(1, 31)] == pytest.approx(
        torch_rates("CosineAnnealingLR", 30, phase, T_max=30), abs=1e-12
    )


def test_plateau_against_torch() -> None:
    """The metric falls, stalls, and then jitters at the threshold for several times the patience."""
    rng = random.Random(0)
    metrics = [10 / (1 + n) if n < 8 else 1.25 + 0.02 * rng.uniform(-1, 1) for n in range(60)]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.2, threshold=0.01, patience=5, eps=0.0
    )
    ours = make_schedule(OptimConfig(lr=1.0, lr_policy="plateau"))
    for epoch, metric in enumerate(metrics, start=1):
        assert ours.lr(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        ours.end_epoch(metric)
        scheduler.step(metric)
    assert ours.lr(61) < 0.01
    restored = make_schedule(OptimConfig(lr=1.0, lr_policy="plateau"))
    restored.load_state_dict(ours.state_dict())
    assert restored.lr(61) == ours.lr(61)


def test_constant_and_callable() -> None:
    assert make_schedule(OptimConfig(lr=3.0, lr_policy="constant")).lr(150) == 3.0
    assert make_schedule(OptimConfig(lr=3.0, lr_policy="plateau"), lambda e: 1 / (1 + e)).lr(3) == 1.0
