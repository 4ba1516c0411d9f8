"""Tests of the pool on the device: the same random numbers give the same images as the reference's pool."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcyclegan.recipes.image_pool import ImagePool
from fastcyclegan.reference import ReplayPool

# (reason, capacity, batch)
POOLS = [
    ("no slots: images pass through", 0, 2),
    ("one slot: images of one query replace each other", 1, 3),
    ("the usual batch", 5, 1),
    ("batch larger than the capacity: fills and swaps in one query", 2, 7),
    ("batch 3", 5, 3),
]


@pytest.mark.parametrize(("reason", "capacity", "batch"), POOLS, ids=[row[0] for row in POOLS])
def test_returns_the_same_images_as_the_reference(reason: str, capacity: int, batch: int) -> None:
    rng = np.random.default_rng(capacity + batch)
    ours, reference = ImagePool(capacity), ReplayPool(capacity)
    for _ in range(60):
        images = torch.randn(batch, 2, 3, 3)
        draws = [tuple(pair) for pair in rng.random((batch, 2)).tolist()]
        assert torch.equal(ours.query(images, draws), reference.query(images, draws))
    assert ours.filled == min(capacity, 60 * batch)


def test_images_of_several_sizes() -> None:
    rng = np.random.default_rng(0)
    ours, reference = ImagePool(3), ReplayPool(3)
    for n in range(40):
        images, draws = torch.randn(1, 1, 2 + n % 3 * (n > 5), 2), [tuple(rng.random(2).tolist())]
        assert torch.equal(ours.query(images, draws), reference.query(images, draws))
    assert isinstance(ours.slots, list)


@pytest.mark.parametrize("sizes", [1, 3])
def test_a_restored_pool_continues_exactly(sizes: int) -> None:
    rng = np.random.default_rng(1)

    def image(n: int) -> torch.Tensor:
        return torch.full((1, 1, 1 + n % sizes, 2), float(n))

    pool = ImagePool(4)
    for n in range(9):
        pool.query(image(n), [tuple(rng.random(2).tolist())])
    other = ImagePool(4)
    other.load_state_dict(
        pool.state_dict() | {"slots": [s.clone() for s in pool.slots] if sizes > 1 else pool.slots.clone()},
        torch.device("cpu"),
    )
    for n in range(9, 30):
        draws = [tuple(rng.random(2).tolist())]
        assert torch.equal(pool.query(image(n), draws), other.query(image(n), draws))


def test_images_are_detached() -> None:
    pool = ImagePool(2)
    shown = pool.query(torch.ones(1, 1, 2, 2, requires_grad=True) * 2, [(0.0, 0.0)])
    assert not shown.requires_grad
    assert not pool.slots.requires_grad


def test_capacity_is_checked() -> None:
    with pytest.raises(ValueError, match="capacity must not be negative"):
        ImagePool(-1)
    with pytest.raises(ValueError, match="the saved pool has pool_size 3, but this run uses 2"):
        ImagePool(2).load_state_dict(ImagePool(3).state_dict(), torch.device("cpu"))
