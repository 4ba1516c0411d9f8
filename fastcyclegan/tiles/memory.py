"""Estimate the memory that a plan takes: the stored maps, and what exists only while a tile is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.nodes import Node
from fastcyclegan.tiles.passes import Pass, Spans
from fastcyclegan.tiles.slots import layout_of
from fastcyclegan.tiles.spans import length

# A convolution can hold its input once more, padded or in another layout, and so can a norm.
_COPIES = 2


@dataclass(frozen=True)
class Need:
    """How many numbers are stored at once, at most, and how many more exist while a tile is computed."""

    stored: int
    temporary: int

    @property
    def total(self) -> int:
        return self.stored + self.temporary


def need_of(plan: Plan) -> Need:
    """Return what ``plan`` needs at its peak."""
    return Need(layout_of(plan).peak, max(map(_temporary, plan.passes)))


def _temporary(one: Pass) -> int:
    """Return the numbers that exist at once, at most, while the pass computes its largest tile."""
    sizes = {node: _pixels(node, one.rows) * _pixels(node, one.columns) * node.channels for node in one.nodes}
    for node in one.sources:
        sizes[node] = _pixels(node, one.rows) * _pixels(node, one.columns) * node.channels
    last_use = {node: user for user in one.nodes for node in user.inputs}
    alive, peak = 0, 0
    for node in one.nodes:
        given = max(sizes[one] for one in node.inputs)
        peak = max(peak, alive + sizes[node] + _COPIES * given)
        alive += sizes[node]
        alive -= sum(sizes[used] for used in set(node.inputs) if last_use[used] is node and used in one.nodes)
    return peak


def _pixels(node: Node, spans: Sequence[Spans]) -> int:
    return max(length(one.needed[node]) for one in spans)
