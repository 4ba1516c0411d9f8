"""Losses that grow beyond ten times their average are noticed, however often the run is saved."""

from __future__ import annotations

import math

import pytest
import torch

from fastcyclegan.training.loss_watch import LossWatch


def losses(total: float, count: int) -> torch.Tensor:
    """Return ``count`` rows of two losses of different signs whose absolute values add up to ``total``."""
    return torch.tensor([[0.25 * total, -0.75 * total]], dtype=torch.float64).repeat(count, 1)


def test_normal_losses_vary_and_fall() -> None:
    watch = LossWatch()
    assert not watch.is_normal  # nothing is known yet
    for total in (40.0, 20.0, 5.0, 2.0, 9.0, 3.0):
        watch.add(losses(total, 50))
        assert watch.is_normal
        watch.restart()
        assert not watch.is_normal  # no iteration since then


@pytest.mark.parametrize("saves", [1, 5, 25])
def test_growing_losses_are_not_normal_however_often_they_are_saved(saves: int) -> None:
    """The losses double every 25 iterations. They must not become normal by slow growth."""
    watch = LossWatch()
    watch.add(losses(5.0, 500))
    watch.restart()
    last_normal = 0.0
    for step in range(500):
        total = 5.0 * 2 ** (step / 25)
        watch.add(losses(total, 1))
        if (step + 1) % saves == 0:
            if watch.is_normal:
                last_normal = total
            watch.restart()
    assert 20 < last_normal < 200


def test_rows_that_are_not_finite_are_left_out() -> None:
    watch = LossWatch()
    watch.add(losses(5.0, 10))
    watch.add(torch.tensor([[math.nan, 1.0], [math.inf, 1.0]], dtype=torch.float64))
    assert watch.is_normal
    assert watch.count == 10


def test_a_resumed_run_continues_the_average_bit_for_bit() -> None:
    rows = torch.rand(30, 4, dtype=torch.float64)
    whole, first = LossWatch(), LossWatch()
    whole.add(rows)
    first.add(rows[:13])
    first.restart()
    second = LossWatch(first.log_sum, first.count)
    second.add(rows[13:])
    assert (whole.log_sum, whole.count) == (second.log_sum, second.count)
