"""Exact counts of a step: the same twice, without a launch in the official order, and growing by what a block
costs.
"""

from __future__ import annotations

from bench.counts import step_counts
from bench.figures import COUNTS


def test_ours_launches_where_the_official_order_calls() -> None:
    official, ours = (step_counts(name, 32, 1, blocks=1, precision="fp32") for name in ("official", "ours"))
    assert official.launches.total() == 0
    assert ours.launches.total() > 100
    assert ours.aten.total() < official.aten.total() / 2
    assert ours.saved_bytes < official.saved_bytes
    assert ours == step_counts("ours", 32, 1, blocks=1, precision="fp32")


def test_a_block_costs_its_twelve_launches_in_each_of_two_stages() -> None:
    one, two = (step_counts("ours", 32, 1, blocks=n, precision="fp32") for n in (1, 2))
    assert two.launches.total() - one.launches.total() == 2 * (4 + 8)


def test_identity_passes_cost_no_launch() -> None:
    with_identity, without = (
        step_counts("ours", 32, 1, blocks=1, identity=on, precision="fp32") for on in (True, False)
    )
    assert with_identity.launches == without.launches


def test_launches_of_an_iteration_by_part() -> None:
    """At 256x256 in bf16, with everything that PyTorch calls: 520 at most, of which the kernels' are
    these."""
    found = step_counts("ours", 256, 1)
    total = found.launches.total() + found.aten.total()
    assert sum(found.parts.values()) == total <= 520
    # Two stages of 36 in the blocks and 14 to 20 around them, the discriminators', the losses and the
    # weights' forms.
    assert found.parts["G forward"] <= 2 * 56 + 30
    # Two stages of 72 in the blocks and 40 around them; the discriminators' and the losses'.
    assert found.parts["G backward"] <= 2 * 112 + 30
    assert found.parts["D forward"] + found.parts["D backward"] <= 100
    assert total - sum(n for part, n in found.parts.items() if part[:2] in ("G ", "D ")) <= 40


def test_every_count_has_a_name_in_the_report() -> None:
    assert {"launches", "aten_calls", "saved_bytes"} <= COUNTS.keys()
