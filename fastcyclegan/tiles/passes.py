"""One pass over the tiles of a map: which nodes it computes, and which pixels of each for a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastcyclegan.errors import UserError
from fastcyclegan.tiles.nodes import Node, Place
from fastcyclegan.tiles.spans import Span, Window, cuts, length, union

Sizes = dict[Node, tuple[int, int]]
"""The height and the width of each map."""


def sizes_of(order: Sequence[Node], size: tuple[int, int]) -> Sizes:
    """Return the size of each map in ``order``, for an image of ``size`` (H, W).

    Raises UserError if the network cannot compute an image of this size.
    """
    sizes: Sizes = {}
    for node in order:
        sizes[node] = _size(node, sizes) if node.inputs else size
    return sizes


def _size(node: Node, sizes: Sizes) -> tuple[int, int]:
    given, *others = (sizes[one] for one in node.inputs)
    height, width = node.side(0, given[0]), node.side(1, given[1])
    if min(height, width) < 1 or any(other != given for other in others):
        inputs = " and ".join(f"{size[1]}x{size[0]}" for size in (given, *others))
        raise UserError(
            f"{node.name} cannot be computed from maps of {inputs} pixels: the image does not fit"
        )
    return height, width


@dataclass(frozen=True)
class Spans:
    """The pixels along one axis that a tile needs of each node, and that each computed node reads."""

    needed: dict[Node, Span]
    read: dict[Node, Span]


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass that computes ``target`` tile by tile, from the maps ``sources``.

    ``nodes`` are computed for each tile, in this order; the last one is the target. ``measured`` tells
    whether the statistics of the target are gathered, and ``stored`` are the maps, of the size of the target,
    that are stored. ``tile`` is the side of a tile of the target.
    """

    nodes: tuple[Node, ...]
    sources: tuple[Node, ...]
    measured: bool
    stored: tuple[Node, ...]
    tile: int
    sizes: Sizes

    @property
    def target(self) -> Node:
        return self.nodes[-1]

    @property
    def name(self) -> str:
        return self.target.name

    @cached_property
    def rows(self) -> list[Spans]:
        return self._spans(0)

    @cached_property
    def columns(self) -> list[Spans]:
        return self._spans(1)

    def _spans(self, axis: int) -> list[Spans]:
        side = self.sizes[self.target][axis]
        return [self._spans_of(axis, span) for span in cuts(side, self.tile)]

    def _spans_of(self, axis: int, span: Span) -> Spans:
        needed: dict[Node, Span] = dict.fromkeys((*self.stored, self.target), span)
        read: dict[Node, Span] = {}
        for node in reversed(self.nodes):
            side = self.sizes[node.inputs[0]][axis]
            read[node] = node.reads(axis, needed[node], side)
            for one in node.inputs:
                needed[one] = union(needed.get(one), read[node])
        return Spans(needed, read)

    def place(self, node: Node, rows: Spans, columns: Spans) -> Place:
        window: Window = rows.needed[node], columns.needed[node]
        return Place(window, (rows.read[node], columns.read[node]), self.sizes[node.inputs[0]])

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.columns)

    def work(self) -> float:
        """Return the number of multiplications of the pass, without those that are part of no convolution."""
        total = 0.0
        for node in self.nodes:
            if node.work:
                pixels = self.pixels(node, self.rows) * self.pixels(node, self.columns)
                total += float(node.work) * pixels
        return total

    @staticmethod
    def pixels(node: Node, spans: Sequence[Spans]) -> int:
        return sum(length(one.needed[node]) for one in spans)

    def overhang(self, node: Node, axis: int) -> int:
        """Return how many pixels before or after a tile of the target the pass needs of ``node``, at most.

        They are pixels of ``node``, whose grid can be finer than that of the target.
        """
        target, side = self.sizes[self.target][axis], self.sizes[node][axis]
        most = 0
        for spans in self.rows if axis == 0 else self.columns:
            own, needed = spans.needed[self.target], spans.needed[node]
            most = max(most, own[0] * side // target - needed[0], needed[1] - -(-own[1] * side // target))
        return most
