from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.tiles.graph import graph_of, order_of
from fastcyclegan.tiles.nodes import Node
from fastcyclegan.tiles.passes import Pass, sizes_of
from tests.tiles.networks import SEQUENCES, seeded
from tests.tiles.whole import image


def pass_of(net: nn.Module, size: tuple[int, int], tile: int, stored: tuple[int, ...] = ()) -> Pass:
    """Return a pass that computes all of ``net``, and stores the nodes with these numbers."""
    order = order_of(graph_of(net.eval(), 3)[1])
    kept = tuple(order[number] for number in stored)
    return Pass(tuple(order[1:]), (order[0],), False, kept, tile, sizes_of(order, size))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("size", [(33, 47), (45, 34)])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sizes_are_those_of_the_whole_image(name: str, size: tuple[int, int]) -> None:
    net = seeded(SEQUENCES[name])
    result = graph_of(net, 3)[1]
    with torch.no_grad():
        expected = tuple(net(image(size, dtype=torch.float32)).shape[1:])
    assert (result.channels, *sizes_of(order_of(result), size)[result]) == expected


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 9)), (8, 20), "Sequential.0 cannot be computed from maps of 20x8"),
        (Generator(ngf=2, n_blocks=1), (4, 4), r"model.10.conv_block.0 reflects 1 pixels"),
        (UnetGenerator(ngf=2, num_downs=5), (48, 64), "maps of 4x3 and 4x2"),
    ],
)  # fmt: skip
def test_an_image_that_does_not_fit_is_an_error(net: nn.Module, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sizes_of(order_of(graph_of(net.eval(), 3)[1]), size)


@pytest.mark.parametrize("tile", [1, 7, 16, 100])
def test_tiles_cover_each_pixel_of_the_target_once(tile: int) -> None:
    one = pass_of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 4, 2, 1)), (34, 40), tile)
    counts = torch.zeros(17, 20, dtype=torch.int64)
    for rows in one.rows:
        for columns in one.columns:
            counts[slice(*rows.needed[one.target]), slice(*columns.needed[one.target])] += 1
    assert (counts == 1).all()
    assert one.tiles == len(one.rows) * len(one.columns)
    assert one.name == "Sequential.1"


def test_each_tile_needs_what_is_read_and_no_more() -> None:
    net = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 3, padding=1))
    one = pass_of(net, (20, 30), 8)
    start, target = one.sources[0], one.target
    assert [span.needed[target] for span in one.rows] == [(0, 8), (8, 16), (16, 20)]
    # 1 + 2 pixels on each side, as far as they are in the image.
    assert [span.needed[start] for span in one.rows] == [(0, 11), (5, 19), (13, 20)]
    assert [span.needed[start] for span in one.columns] == [(0, 11), (5, 19), (13, 27), (21, 30)]
    assert one.overhang(start, 0) == 3
    assert one.overhang(target, 0) == 0
    place = one.place(target, one.rows[1], one.columns[0])
    assert (place.window, place.size) == (((8, 16), (0, 8)), (22, 32))
    # The work is that of these pixels, including those that neighbouring tiles share.
    first, second = (node for node in one.nodes if node.work)
    rows = [10 - 1, 10, 5]
    columns = [9, 10, 10, 7]
    assert one.work() == first.work * sum(rows) * sum(columns) + second.work * 20 * 30


def test_a_reflection_at_the_edge_reads_what_it_shows() -> None:
    """The last tile is a single pixel, and the reflection shows three pixels before it."""
    one = pass_of(nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 4, 7)), (9, 9), 8)
    start = one.sources[0]
    assert one.rows[-1].needed[start] == (5, 9)
    assert one.overhang(start, 0) == 3


def test_a_stored_map_is_needed_in_all_of_each_tile() -> None:
    """Nothing but the centre of the stored map is read, but all of it is stored."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ZeroPad2d(-4), nn.ZeroPad2d(4))
    plain, storing = (pass_of(net, (20, 20), 8, stored) for stored in ((), (1,)))
    assert plain.rows[0].needed[plain.nodes[0]] == (4, 8)
    assert storing.rows[0].needed[storing.nodes[0]] == (0, 8)


def test_the_overhang_counts_in_pixels_of_the_map() -> None:
    """A tile of a coarse map covers more pixels of the fine one that it is computed from."""
    one = pass_of(nn.Sequential(nn.Conv2d(3, 4, 4, stride=2, padding=1)), (32, 32), 4)
    node: Node = one.sources[0]
    assert one.rows[1].needed[node] == (7, 17)
    assert one.overhang(node, 0) == 1
