"""Passes gather each statistic once before it is used, and store only what later passes read."""

from __future__ import annotations

import pytest
from torch import nn

from fastcyclegan.nn.chains import ResidualBlock
from fastcyclegan.tiles.divide import Plan, divided
from fastcyclegan.tiles.graph import graph_of, order_of
from fastcyclegan.tiles.nodes import Normalised
from fastcyclegan.tiles.passes import sizes_of
from fastcyclegan.tiles.plan import plan
from tests.tiles.networks import RESNETS, UNETS, resnet, seeded, unet


def test_there_is_a_plan_for_each_scale_and_one_that_stores_nothing() -> None:
    net = seeded(resnet())
    image, result = graph_of(net, 3)
    order = order_of(result)
    sizes = sizes_of(order, (64, 64))
    made = divided(image, order, sizes, 32)
    # A generator's maps have the full size of the image, half of it and a quarter.
    stored = [{sizes[node] for node in one.stored} for one in made]
    assert stored == [set(), {(16, 16)}, {(32, 32), (16, 16)}, {(64, 64), (32, 32), (16, 16)}]
    works = [one.work for one in made]
    assert works == sorted(works, reverse=True)
    assert works[-1] >= 1


@pytest.mark.parametrize("name", [f"resnet {name}" for name in RESNETS] + [f"unet {name}" for name in UNETS])
def test_each_norm_is_measured_once_before_it_is_computed(name: str) -> None:
    kind, _, key = name.partition(" ")
    net = seeded((RESNETS if kind == "resnet" else UNETS)[key])
    made = plan(net, getattr(net, "arguments", {}).get("input_nc", 3), (64, 128), 32)
    measured = [one.target for one in made.passes if one.measured]
    wanted = {node.inputs[0] for node in order_of(made.result) if isinstance(node, Normalised)}
    assert len(measured) == len(set(measured))
    assert set(measured) == wanted
    known, stored = set(), {made.image}
    for one in made.passes:
        assert all(node.inputs[0] in known for node in one.nodes if isinstance(node, Normalised))
        # What a pass reads is stored, and what it stores has the size of its target.
        assert set(one.sources) <= stored
        assert all(made.sizes[node] == made.sizes[one.target] for node in one.stored)
        known |= {one.target} if one.measured else set()
        stored |= set(one.stored)
    assert made.passes[-1].target is made.result


def sum_of_one_reader() -> nn.Module:
    """The sum of the block is read by the convolution after it alone, in the pass that could store it."""
    block = ResidualBlock(4, "instance", affine=False, use_dropout=False)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), block, conv, nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3))


def test_all_that_is_stored_is_read_later() -> None:
    for make in (resnet(n_blocks=9), resnet(norm="none", n_blocks=4), unet(), sum_of_one_reader):
        made = plan(seeded(make), 3, (64, 128), 32)
        for number, one in enumerate(made.passes):
            later = {node for other in made.passes[number + 1 :] for node in other.sources}
            assert set(one.stored) <= later


def test_a_sum_that_a_norm_follows_is_measured_and_stored() -> None:
    block = ResidualBlock(4, "instance", affine=False, use_dropout=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), block, nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    made = plan(net.eval(), 3, (128, 128), 32)
    (one,) = (one for one in made.passes if one.name == "Sequential.1.conv_block.6")
    assert one.measured


def test_the_halo_is_what_is_read_around_a_tile() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.Conv2d(4, 3, 5, padding=2)).eval()
    made = plan(net, 3, (64, 64), 16)
    assert halo_of(made) == made.halo == 5


def halo_of(made: Plan) -> int:
    """Return the largest distance from a tile to what it reads of the image, on whose grid the pass is."""
    (one,) = made.passes
    distances = []
    for spans in (*one.rows, *one.columns):
        tile, read = spans.needed[one.target], spans.needed[made.image]
        distances += [tile[0] - read[0], read[1] - tile[1]]
    return max(distances)
