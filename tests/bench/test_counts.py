"""Exact counts of a step: the same twice, without a launch in the official order, and growing by what a block costs."""

from __future__ import annotations

from counts import step_counts
from figures import COUNTS

from fastcyclegan.counters import count
from fastcyclegan.networks import Generator


def test_ours_launches_where_the_official_order_calls() -> None:
    official, ours = (step_counts(name, 32, 1, blocks=1, precision="fp32") for name in ("official", "ours"))
    assert official.launches.total() == 0
    assert ours.launches.total() > 200
    assert ours.aten.total() < official.aten.total() / 2
    assert ours.saved_bytes < official.saved_bytes
    assert ours == step_counts("ours", 32, 1, blocks=1, precision="fp32")


def test_a_block_costs_its_twelve_launches_in_each_of_six_passes() -> None:
    one, two = (step_counts("ours", 32, 1, blocks=n, precision="fp32") for n in (1, 2))
    assert two.launches.total() - one.launches.total() == 6 * (4 + 8)


def test_without_identity_there_are_two_passes_less() -> None:
    with_identity, without = (step_counts("ours", 32, 1, blocks=1, identity=on, precision="fp32") for on in (True, False))
    import torch

    net = Generator(n_blocks=1, impl="triton").to(memory_format=torch.channels_last)
    generator = count(net, torch.zeros(1, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    # The identity passes' inputs need no gradient, which count() computes: two launches less in each.
    assert 0 <= 2 * generator.launches.total() - (with_identity.launches.total() - without.launches.total()) <= 4


def test_every_count_has_a_name_in_the_report() -> None:
    assert {"launches", "aten_calls", "saved_bytes"} <= COUNTS.keys()
