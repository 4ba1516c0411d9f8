"""The guarantees of a sample plan.

The same (seed, epoch, i) gives the same sample, an epoch shows each image once, and the random numbers are
uniform.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fastcyclegan.data.sample_plan import Plan, uniforms

GOLDEN_UNIFORMS = [0.9799939816368156, 0.09974389385865956]
GOLDEN_SAMPLE = (1, 5, False, True)
GOLDEN_NUMBERS = [0.10576833708881905, 0.04182286484588671]


def test_golden_values() -> None:
    """A plan's values must never change, because a run can be resumed with another version of numpy."""
    assert uniforms(2, 0, 1, 1, 0).tolist() == GOLDEN_UNIFORMS
    sample = Plan(seed=7, count_A=10, count_B=12).sample(epoch=2, i=3)
    assert (sample.index_A, sample.index_B, sample.view_A.flip, sample.view_B.flip) == GOLDEN_SAMPLE


def test_further_numbers_leave_the_others_as_they_are() -> None:
    """They are golden values like those above."""
    plain, longer = (Plan(7, 10, 12, numbers=numbers).sample(epoch=2, i=3) for numbers in (0, 42))
    assert plain.numbers == ()
    assert len(longer.numbers) == len(set(longer.numbers)) == 42
    assert list(longer.numbers[:2]) == GOLDEN_NUMBERS
    assert replace(longer, numbers=()) == plain
    numbers = [n for i in range(100) for n in Plan(7, 100, 100, numbers=42).sample(1, i).numbers]
    # The mean of 4,200 uniforms (standard deviation 0.29) is within 5 standard errors.
    assert np.mean(numbers) == pytest.approx(0.5, abs=5 * 0.29 / math.sqrt(4200))
    assert len(set(numbers)) == len(numbers)


def test_pairs_have_one_index_crop_and_flip() -> None:
    """Everything else of a sample is as without pairs."""
    plan = Plan(seed=1, count_A=17, count_B=17)
    for number in range(17):
        sample, apart = (replace(plan, paired=paired).sample(2, number) for paired in (True, False))
        assert (sample.index_B, sample.view_B) == (sample.index_A, sample.view_A)
        assert sample == replace(apart, index_B=apart.index_A, view_B=apart.view_A)
        assert sample.index("A") == sample.index("B")
        assert (apart.index("B"), apart.view("B")) == (apart.index_B, apart.view_B)
    orders = [[replace(plan, paired=True).sample(epoch, i).index_B for i in range(17)] for epoch in (1, 2)]
    assert sorted(orders[0]) == list(range(17))
    assert orders[0] != orders[1]
    serial = replace(plan, paired=True, serial=True)
    assert [serial.sample(1, i).index_B for i in range(17)] == list(range(17))
    with pytest.raises(ValueError, match="pairs need equal counts, got 17 and 16"):
        replace(plan, count_B=16, paired=True)


def test_an_epoch_shows_every_image_of_the_larger_domain_once() -> None:
    plan = Plan(seed=1, count_A=17, count_B=5)
    for epoch in (1, 2):
        shown = [plan.sample(epoch, i).index_A for i in range(len(plan))]
        assert sorted(shown) == list(range(17))
    assert [plan.sample(1, i).index_A for i in range(17)] != [plan.sample(2, i).index_A for i in range(17)]
    few = Plan(seed=1, count_A=3, count_B=7)
    counts = Counter(few.sample(1, i).index_A for i in range(len(few)))
    assert sorted(counts.values()) == [2, 2, 3]  # i mod 3 for 7 samples


def test_serial_pairs_by_position() -> None:
    plan = Plan(seed=1, count_A=3, count_B=2, serial=True)
    assert [(s.index_A, s.index_B) for s in (plan.sample(1, i) for i in range(3))] == [(0, 0), (1, 1), (2, 0)]


def test_batches_cover_epochs_and_keep_the_partial_batch() -> None:
    plan = Plan(seed=0, count_A=5, count_B=2, batch_size=2)
    assert plan.iterations_per_epoch == 3
    assert list(plan.batches(1, 5)) == [
        (1, range(2, 4)),
        (1, range(4, 5)),
        (2, range(0, 2)),
        (2, range(2, 4)),
    ]


def test_random_numbers_are_uniform_and_flips_can_be_off() -> None:
    n = 4000
    plan = Plan(seed=3, count_A=n, count_B=10)
    samples = [plan.sample(1, i) for i in range(n)]
    for values in (
        [s.view_A.x for s in samples],
        [s.draw_B[1] for s in samples],
        [s.mix_A for s in samples],
        [float(s.view_B.flip) for s in samples],
    ):
        # The mean of n uniforms (standard deviation 0.29) or coin flips (0.5) is within 5 standard errors.
        assert np.mean(values) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))
    counts = np.bincount([s.index_B for s in samples], minlength=10)
    assert ((counts - n / 10) ** 2 / (n / 10)).sum() < 33.7  # chi-square, 9 degrees of freedom, 1 in 10,000
    assert not any(
        Plan(seed=3, count_A=99, count_B=9, flip=False).sample(1, i).view_A.flip for i in range(99)
    )


def test_streams_do_not_repeat_each_other() -> None:
    plan = Plan(seed=3, count_A=50, count_B=50)
    places = [
        v
        for epoch in (1, 2)
        for i in range(50)
        for v in (plan.sample(epoch, i).view_A.x, plan.sample(epoch, i).view_B.x)
    ]
    places += [Plan(seed=4, count_A=50, count_B=50).sample(1, i).view_A.x for i in range(50)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("count", "batch", "ranks"),
    [(12, 2, 3), (7, 1, 2), (10, 3, 4)],
    ids=["even", "odd", "a rank without samples"],
)
def test_shards_make_exactly_one_epoch(count: int, batch: int, ranks: int) -> None:
    """The ranks' batches together are the batch of one process with ``ranks`` times the batch size."""
    plan = Plan(seed=5, count_A=count, count_B=4, batch_size=batch)
    together = Plan(seed=5, count_A=count, count_B=4, batch_size=batch * ranks)
    shards = [plan.shard(rank, ranks) for rank in range(ranks)]
    for shard in shards:
        assert shard.iterations_per_epoch == together.iterations_per_epoch
    for iteration in range(2 * together.iterations_per_epoch):
        epoch, numbers = together.batch(iteration)
        parts = [shard.batch(iteration) for shard in shards]
        assert {part[0] for part in parts} == {epoch}
        assert sorted(i for _, part in parts for i in part) == list(numbers)
        sizes = [len(part) for _, part in parts]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match=r"rank must be in \[0, ranks\), got rank 3 of 3"):
        plan.shard(3, 3)
