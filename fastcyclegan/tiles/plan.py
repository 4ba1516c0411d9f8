"""Choose how to divide the computation of a network into passes over tiles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastcyclegan.errors import UserError
from fastcyclegan.tiles.divide import Plan, divided
from fastcyclegan.tiles.graph import graph_of, order_of
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.nodes import Image, Node
from fastcyclegan.tiles.passes import Sizes, sizes_of

# How much more work than the whole image a plan can take in order to need less memory.
WORTH = 1.4
# How much more work than the whole image a plan can take at all.
SLOWEST = 4


def plan(net: nn.Module, channels: int, size: tuple[int, int], tile: int) -> Plan:
    """Return the first one of ``plans``."""
    return plans(net, channels, size, tile)[0]


def plans(net: nn.Module, channels: int, size: tuple[int, int], tile: int) -> list[Plan]:
    """Plan the computation of ``net`` for an image of ``size`` (H, W) by tiles of ``tile`` pixels.

    The first plan needs as little memory as possible without much more work than the whole image takes. The
    next ones are for when it does not fit: they need less and work more, up to SLOWEST. The last ones need
    more.
    ``net`` is in evaluation mode. Raises ForeignLayerError for a network that cannot be tiled exactly, and
    UserError if the tile is smaller than the halo of every plan.
    """
    image, result = graph_of(net, channels)
    order = order_of(result)
    sizes = sizes_of(order, size)
    made = _in_order(divided(image, order, sizes, tile))
    fitting = [one for one in made if one.halo <= tile]
    if not fitting:
        halo = min(one.halo for one in made)
        least = _least(image, order, sizes, halo)
        raise UserError(
            f"--tile {tile} is smaller than the halo of {halo} pixels that this network reads around a tile;"
            f" the least is {least}"
        )
    return fitting


def _in_order(made: Sequence[Plan]) -> list[Plan]:
    """Return the plans in the order in which they should be tried. See ``plans``."""
    by_memory = sorted(made, key=lambda one: need_of(one).total)
    cheap = [number for number, one in enumerate(by_memory) if one.work <= WORTH]
    first = cheap[0] if cheap else min(range(len(made)), key=lambda number: by_memory[number].work)
    possible = [one for one in by_memory if one.work <= max(SLOWEST, by_memory[first].work)]
    place = possible.index(by_memory[first])
    leaner = sorted(possible[:place], key=lambda one: one.work)
    return [by_memory[first], *leaner, *possible[place + 1 :]]


def _least(image: Image, order: Sequence[Node], sizes: Sizes, tile: int) -> int:
    """Return a tile, found from ``tile`` on, that is not smaller than its halo, while one pixel less is.

    With another tile, another plan can be possible, and its halo can be larger or smaller.
    """

    def halo(side: int) -> int:
        return min(one.halo for one in _in_order(divided(image, order, sizes, side)))

    while (needed := halo(tile)) > tile:
        tile = needed
    while tile > 1 and halo(tile - 1) < tile:
        tile -= 1
    return tile
