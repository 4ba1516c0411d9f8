"""KID against the double sum of its definition, without bias, over subsets that depend on the seed alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcyclegan.metrics import kernel_distance as module
from fastcyclegan.metrics.kernel_distance import kernel_distance, subset_size, weighted_distances

pytest.importorskip("torchmetrics")


def features(count: int, seed: int, width: int = 6, shift: float = 0.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=(count, width)) + shift).astype(np.float32))


def kernel(x: list[float], y: list[float]) -> float:
    return (math.fsum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def by_double_sum(a: Tensor, b: Tensor, same_a: list[int], same_b: list[int]) -> float:
    """Return the distance of sets in which images of equal numbers in ``same`` are the same image.

    Pairs of different places that have the same image are left out.
    """
    rows_a, rows_b = a.double().tolist(), b.double().tolist()

    def within(rows: list[list[float]], same: list[int]) -> float:
        pairs = [(i, j) for i, j in itertools.permutations(range(len(rows)), 2) if same[i] != same[j]]
        return math.fsum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = math.fsum(kernel(x, y) for x, y in itertools.product(rows_a, rows_b))
    return within(rows_a, same_a) + within(rows_b, same_b) - 2 * between / (len(a) * len(b))


def plain(a: Tensor, b: Tensor) -> float:
    return by_double_sum(a, b, list(range(len(a))), list(range(len(b))))


@pytest.mark.parametrize("count", [2, 3, 17])
def test_a_subset_of_all_images_is_the_double_sum(count: int) -> None:
    a, b = features(count, 0), features(count, 1, shift=0.3)
    found = kernel_distance(a, b, 1, count)
    assert found["mean"] == pytest.approx(plain(a, b), rel=1e-12, abs=1e-12)
    assert found["std"] == 0


def test_the_mean_and_the_deviation_are_those_of_the_subsets() -> None:
    """The first subsets stay the same if more are drawn, so the values follow from the means."""
    a, b = features(30, 0), features(20, 1, shift=0.5)
    means = [kernel_distance(a, b, number, 7)["mean"] for number in range(1, 9)]
    values = np.diff(np.arange(9) * np.array([0, *means]))
    found = kernel_distance(a, b, 8, 7)
    assert len(set(values)) == 8
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert found["std"] == pytest.approx(values.std(), rel=1e-9)


def test_the_subsets_depend_only_on_the_seed() -> None:
    a, b = features(30, 0), features(20, 1)
    found = kernel_distance(a, b, 5, 7, seed=3)
    torch.manual_seed(11)
    np.random.seed(11)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert kernel_distance(a, b, 5, 7, seed=3) == found
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert kernel_distance(a, b, 5, 7, seed=4) != found


def test_the_mean_of_equal_distributions_is_0() -> None:
    """Within 4 standard errors over 300 draws. The biased estimate is not, so the test would find it."""
    values, biased = [], []
    for seed in range(300):
        a, b = features(12, seed), features(12, seed + 1000)
        values.append(kernel_distance(a, b, 1, 12)["mean"])
        of_self = sum(kernel(row, row) for each in (a, b) for row in each.double().tolist())
        biased.append(values[-1] + of_self / 12**2)  # about: with each image's pair with itself
    error = np.std(values) / math.sqrt(300)
    assert abs(np.mean(values)) < 4 * error
    assert np.mean(biased) > 4 * error


def test_equal_sets() -> None:
    """Within the noise: subsets of the same images differ."""
    a = features(40, 0)
    found = kernel_distance(a, a.clone(), 200, 10)
    assert abs(found["mean"]) < 4 * found["std"]


def test_subset_sizes() -> None:
    assert [subset_size(1000, counts) for counts in ((5000, 2000), (1999, 5000), (7, 9), (3, 3), (2, 9))] == [
        1000,
        999,
        3,
        2,
        2,
    ]


def test_weights_leave_out_pairs_of_an_image_with_its_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 4)  # several blocks of rows
    a, b = features(9, 0), features(6, 1, shift=0.4)
    rng = np.random.default_rng(0)
    weights = [torch.from_numpy(rng.integers(0, 3, (5, len(each)))) for each in (a, b)]
    found = weighted_distances(a, b, *weights)
    for number, value in enumerate(found.tolist()):
        repeated = [torch.arange(len(w[number])).repeat_interleave(w[number]) for w in weights]
        same_a, same_b = (indices.tolist() for indices in repeated)
        expected = by_double_sum(a[repeated[0]], b[repeated[1]], same_a, same_b)
        assert value == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_weights_of_1_give_the_distance_of_all_images() -> None:
    a, b = features(9, 0), features(6, 1, shift=0.4)
    found = weighted_distances(a, b, torch.ones(1, 9), torch.ones(1, 6))
    assert found.item() == pytest.approx(plain(a, b), rel=1e-12)
