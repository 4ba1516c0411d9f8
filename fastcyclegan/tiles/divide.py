"""Divide the computation of a network into passes over tiles, and so decide which maps are stored.

A norm over the whole map needs a pass of its own, which gathers the statistics of its input. What such a
pass computes can be stored for the next one, or computed again, which takes time instead of memory. The 64
channels of a generator at the full size of an image take four times as much memory as its 256 channels at a
quarter of that size, and are cheap to compute. So maps are stored from some scale on, and finer ones are
computed again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastcyclegan.tiles.nodes import Convolved, Image, Node, Normalised, Summed, Transposed
from fastcyclegan.tiles.passes import Pass, Sizes

# On grids coarser than this, tiles keep their side: fewer pixels would not be worth a call.
COARSEST = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """The passes that compute ``result`` from ``image``, and the size of every map."""

    image: Image
    result: Node
    passes: tuple[Pass, ...]
    sizes: Sizes
    whole_work: float

    @cached_property
    def work(self) -> float:
        """The number of multiplications, in terms of those for the whole image."""
        return sum(one.work() for one in self.passes) / max(self.whole_work, 1.0)

    @property
    def tiles(self) -> int:
        """The number of tiles of all passes together."""
        return sum(one.tiles for one in self.passes)

    @property
    def stored(self) -> list[Node]:
        return [node for one in self.passes for node in one.stored]

    @cached_property
    def halo(self) -> int:
        """How many pixels of the image around a tile a pass reads, at most, in a direction."""
        found, size = [0], self.sizes[self.image]
        for one in self.passes:
            scale = _scale(one.target, self.sizes, size)
            # Tiles of a coarse map show more of the image than ``tile`` pixels.
            share = min(scale, COARSEST) / scale
            for node in one.sources:
                pixels = max(one.overhang(node, axis) for axis in (0, 1))
                found.append(math.ceil(pixels * _scale(node, self.sizes, size) * share))
        return max(found)


def divided(image: Image, order: Sequence[Node], sizes: Sizes, tile: int) -> list[Plan]:
    """Return a plan for each scale from which maps can be stored; those that store less come first."""
    whole = float(sum(node.work * sizes[node][0] * sizes[node][1] for node in order))
    made = []
    for scale in _scales(order, sizes, sizes[image]):
        passes = _passes(order, sizes, tile, scale)
        made.append(Plan(image, order[-1], passes, sizes, whole))
    return made


def _scales(order: Sequence[Node], sizes: Sizes, size: tuple[int, int]) -> list[int]:
    """Return the scales from which maps can be stored, the coarsest first, and before it one without any."""
    scales = {_scale(node, sizes, size) for node in order}
    return [max(scales) + 1, *sorted(scales, reverse=True)]


def _scale(node: Node, sizes: Sizes, size: tuple[int, int]) -> int:
    return max(1, round(max(size) / max(sizes[node])))


def _passes(order: Sequence[Node], sizes: Sizes, tile: int, scale: int) -> tuple[Pass, ...]:
    """Divide the computation into passes that store the maps of at least ``scale``."""
    image, result = order[0], order[-1]
    size = sizes[image]
    measured = {node.inputs[0] for node in order if isinstance(node, Normalised)}
    stored: dict[Node, None] = {image: None}
    # Sums that are not measured are stored by the next pass that needs them.
    waiting: set[Node] = set()
    passes: list[Pass] = []
    for node in order[1:]:
        can_store = _scale(node, sizes, size) >= scale and node is not result
        is_sum = isinstance(node, (Summed, Normalised)) and len(node.inputs) > 1
        if is_sum and can_store and node not in measured:
            waiting.add(node)
            continue
        store = can_store and (is_sum or isinstance(node, (Convolved, Transposed)))
        if node not in measured and not store and node is not result:
            continue
        nodes, sources = _between(node, stored, order)
        also = [one for one in nodes if one in waiting and sizes[one] == sizes[node] and one is not node]
        kept = (*also, node) if store else tuple(also)
        side = max(1, tile // min(_scale(node, sizes, size), COARSEST))
        passes.append(Pass(nodes, sources, node in measured, kept, side, sizes))
        stored.update(dict.fromkeys(kept))
    return _without_unread(passes)


def _between(
    target: Node, stored: dict[Node, None], order: Sequence[Node]
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Return the nodes to compute for ``target``, in order, and the stored ones that they read."""
    needed, sources = {target}, set[Node]()
    for node in reversed(order):
        if node in needed:
            for one in node.inputs:
                (sources if one in stored else needed).add(one)
    return tuple(n for n in order if n in needed), tuple(n for n in order if n in sources)


def _without_unread(passes: list[Pass]) -> tuple[Pass, ...]:
    """Store no map that no later pass reads."""
    read: set[Node] = set()
    result = []
    for one in reversed(passes):
        stored = tuple(node for node in one.stored if node in read)
        if stored or one.measured or one is passes[-1]:
            result.append(Pass(one.nodes, one.sources, one.measured, stored, one.tile, one.sizes))
            read.update(one.sources)
    return tuple(reversed(result))
