"""Each node computes any window of its map from what it reads, as its layer computes the whole map."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.errors import UserError
from fastcyclegan.nn.as_trained import KeyedDropout
from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.graph import graph_of, order_of
from fastcyclegan.tiles.nodes import Image, Joined, Node, Padded, Place, Summed, Tools
from fastcyclegan.tiles.passes import sizes_of
from tests.tiles.whole import image, randomised

SIZE = 11, 9

LAYERS: dict[str, nn.Module] = {
    "reflection": nn.ReflectionPad2d((4, 1, 2, 5)),
    "replication": nn.ReplicationPad2d((0, 3, 12, 1)),
    "zeros": nn.ZeroPad2d((4, 5, 6, 4)),
    "crop": nn.ZeroPad2d((-2, 1, 3, -4)),
    "conv": nn.Conv2d(4, 3, (3, 4), stride=(2, 1), dilation=(1, 2)),
    "conv reflect": nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect", groups=2),
    "conv same": nn.Conv2d(4, 3, (5, 4), padding="same"),
    "resized": reference.ResizeConv2d(4, 3),
    "transposed": nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
    "transposed, larger padding": nn.ConvTranspose2d(4, 3, 5, stride=(1, 3), padding=(3, 4)),
    "transposed, output padding": nn.ConvTranspose2d(4, 3, 2, stride=3, output_padding=(2, 1)),
    "transposed, gaps": nn.ConvTranspose2d(4, 3, 1, stride=(2, 4), output_padding=(0, 3)),
    "transposed, dilation": nn.ConvTranspose2d(
        4, 3, (2, 3), stride=1, dilation=(3, 2), output_padding=(2, 1)
    ),
    "blurred": reference.AntialiasedDownsample(4),
    "blurred up": reference.AntialiasedUpsample(4),
    "repeated": nn.Upsample(scale_factor=3),
    "pointwise": nn.Sequential(nn.PReLU(4), nn.GELU()),
    "dropout": KeyedDropout(0.4, 3),
    "batch norm": nn.BatchNorm2d(4),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def computed(node: Node, maps: dict[Node, Tensor], window: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    """Return ``window`` of ``node``, computed from nothing but what it reads of its inputs."""
    size = tuple(maps[node.inputs[0]].shape[2:])
    rows, columns = (node.reads(axis, window[axis], size[axis]) for axis in (0, 1))
    assert 0 <= rows[0] < rows[1] <= size[0]
    assert 0 <= columns[0] < columns[1] <= size[1]
    inputs = [maps[one][:, :, slice(*rows), slice(*columns)] for one in node.inputs]
    given = [x.clone() for x in inputs]
    result = node.compute(inputs, Place(window, (rows, columns), size), Tools(Calls("reference"), {}))
    assert all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True)), "an input was changed"
    return result


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", LAYERS)
def test_any_window_is_that_of_the_whole_map(name: str) -> None:
    torch.manual_seed(0)
    net = randomised(nn.Sequential(LAYERS[name])).double()
    x = image(SIZE, 4)
    start, result = graph_of(net, 4)
    order = order_of(result)
    sizes, maps = sizes_of(order, SIZE), {start: x}
    for node in order[1:]:
        maps[node] = computed(node, maps, ((0, sizes[node][0]), (0, sizes[node][1])))
        assert maps[node].shape == (1, node.channels, *sizes[node])
    torch.testing.assert_close(maps[result], net(x), rtol=1e-12, atol=1e-12)
    for node in order[1:]:
        height, width = sizes[node]
        rows = list(itertools.combinations(range(height + 1), 2))
        columns = list(itertools.combinations(range(width + 1), 2))
        # All spans along one axis with some along the other: the axes do not affect each other.
        for number in range(max(len(rows), len(columns))):
            window = rows[number % len(rows)], columns[number * 7 % len(columns)]
            expected = maps[node][:, :, slice(*window[0]), slice(*window[1])]
            found = computed(node, maps, window)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_sums_and_joins() -> None:
    a, b = Image("a", (), 2), Image("b", (), 3)
    maps = {a: image(SIZE, 2), b: image(SIZE, 3)}
    window = (2, 5), (0, 4)
    part = {node: x[:, :, 2:5, 0:4] for node, x in maps.items()}
    assert torch.equal(computed(Summed("sum", (a, a), 2), maps, window), 2 * part[a])
    assert torch.equal(computed(Joined("join", (a, b), 5), maps, window), torch.cat([part[a], part[b]], 1))


def test_work_is_counted_per_pixel() -> None:
    work = {}
    for name in ("conv reflect", "transposed", "blurred", "pointwise"):
        work[name] = sum(node.work for node in order_of(graph_of(nn.Sequential(LAYERS[name]), 4)[1]))
    assert work == {"conv reflect": 6 * 2 * 9, "transposed": 4 * 3 * 9 // 4, "blurred": 0, "pointwise": 0}


def test_a_reflection_needs_enough_pixels() -> None:
    """As in PyTorch, which would not reflect the pixel at the edge twice either."""
    node = Padded("pad", (Image("image", (), 3),), 3, (3, 0), (0, 0), "reflect")
    assert node.side(0, 4) == 7
    with pytest.raises(UserError, match="pad reflects 3 pixels of a map with a side of 3"):
        node.side(0, 3)
