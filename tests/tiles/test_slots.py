"""Maps that take the place of others overwrite nothing that is still read.

Here, the order of reads and writes is simulated for the layouts of many plans. ``test_execute.py`` checks the
same while it computes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fastcyclegan.nn.networks import Generator
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.plan import plan
from fastcyclegan.tiles.slots import DOWN, UP, Layout, layout_of
from tests.tiles.networks import RESNETS, UNETS, resnet, seeded, unet


def simulate(made: Plan, layout: Layout) -> int:
    """Fail if a pass reads rows that hold another map. Return how many maps replaced another one in place.

    As soon as a tile is written, the whole rows count as overwritten, also for the next tiles of its band.
    """
    owners = [np.full(slot.rows, -1) for slot in layout.slots]
    numbers = {node: number for number, node in enumerate(layout.places)}
    replaced = 0
    for number, one in enumerate(made.passes):
        alive = [slot for slot in layout.slots if slot.first <= number <= slot.last]
        for rows in one.rows if layout.directions[number] == DOWN else one.rows[::-1]:
            for _ in one.columns:
                for node in one.sources:
                    if node is made.image:
                        continue
                    slot, first = layout.places[node]
                    assert layout.slots[slot] in alive
                    top, bottom = rows.needed[node]
                    assert (owners[slot][first + top : first + bottom] == numbers[node]).all()
                for node in one.stored:
                    slot, first = layout.places[node]
                    assert layout.slots[slot] in alive
                    top, bottom = rows.needed[one.target]
                    assert 0 <= first + top < first + bottom <= layout.slots[slot].rows
                    owners[slot][first + top : first + bottom] = numbers[node]
        for node in one.stored:
            slot, _ = layout.places[node]
            replaced += sum(layout.places[old][0] == slot for old in one.sources if old is not made.image)
    return replaced


CASES: dict[str, Callable[[], nn.Module]] = {
    **{f"resnet {name}": make for name, make in RESNETS.items()},
    **{f"unet {name}": make for name, make in UNETS.items()},
    "resnet of three blocks": resnet(n_blocks=3),
    "resnet of six blocks": resnet(n_blocks=6, ngf=2),
}


SIZES = [((64, 64), 16), ((128, 64), 24), ((192, 64), 20), ((64, 192), 100)]


@pytest.mark.parametrize(("size", "tile"), SIZES)
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_overwritten_that_is_still_read(name: str, size: tuple[int, int], tile: int) -> None:
    net = seeded(CASES[name])
    made = plan(net, getattr(net, "arguments", {}).get("input_nc", 3), size, tile)
    simulate(made, layout_of(made))


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 9])
def test_the_maps_of_residual_blocks_slide_in_two_slots(n_blocks: int) -> None:
    made = plan(seeded(resnet(n_blocks=n_blocks, ngf=2)), 3, (256, 64), 16)
    layout = layout_of(made)
    # The maps of each block but the first take the places of others: its two convolutions, and a sum.
    assert simulate(made, layout) >= 3 * (n_blocks - 1)
    height = made.sizes[next(iter(layout.places))][0]
    coarse = [slot for slot in layout.slots if slot.channels == 8]
    assert len(coarse) == 2
    for slot in coarse:
        # Steps of a tile and what a 3x3 convolution reads of the next one.
        assert slot.step in (0, 4 + 1)
        assert slot.rows <= 64 + 2 * slot.step
    assert height >= 64
    assert {DOWN, UP} == set(layout.directions) or n_blocks == 1


def test_two_maps_and_margins_are_enough_for_a_large_image() -> None:
    with torch.device("meta"):
        net = Generator().eval()
    made = plan(net, 3, (8192, 8192), 512)
    layout = layout_of(made)
    # 128 rows of a quarter of the size are a tile, and a 3x3 convolution reads one more.
    rows = 2048 + 2 * (128 + 1)
    assert layout.peak <= 2 * 256 * rows * 2048
    assert layout.peak >= 2 * 256 * 2048 * 2048
    assert layout.peak == max(layout.elements(number) for number in range(len(made.passes)))


def test_the_skips_of_a_unet_are_kept_until_they_are_read() -> None:
    made = plan(seeded(unet(num_downs=6)), 3, (128, 128), 32)
    layout = layout_of(made)
    for number, one in enumerate(made.passes):
        for node in (*one.sources, *one.stored):
            if node is not made.image:
                slot = layout.slots[layout.places[node][0]]
                assert slot.first <= number <= slot.last
    assert layout.peak < sum(slot.elements for slot in layout.slots)


def test_a_plan_that_stores_nothing_has_no_slots() -> None:
    layout = layout_of(plan(seeded(resnet(norm="batch", n_blocks=0)), 3, (64, 64), 64))
    assert layout == Layout((), {}, (DOWN,))
    assert layout.peak == 0
