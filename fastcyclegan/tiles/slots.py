"""Where the stored maps of a plan live: a map can take the memory of the one that it is computed from.

A pass computes a map in bands of tiles, from the top down or from the bottom up. If the new map lies a band
and its halo before the old one in the same memory, in the direction of the pass, then what it overwrites has
been read for the last time. So two maps of a generator's residual blocks are enough, with a margin of a few
bands. Each pass moves some maps up or down by one step; ``layout_of`` finds the directions for which all of
them stay within a margin of at most two steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.nodes import Node
from fastcyclegan.tiles.passes import Pass

DOWN, UP = 1, -1
_MIDDLE, _STEPS = 1, 2

Places = dict[Node, tuple[int, int]]
"""The slot of each stored map, and how many steps it lies below the start of the slot."""


@dataclass(frozen=True)
class Slot:
    """Memory for maps of one shape, one at a time: ``rows`` rows of ``width`` pixels, ``channels`` channels.

    A map at step s starts at row ``s * step``. The slot is needed from pass ``first`` to pass ``last``.
    """

    rows: int
    width: int
    channels: int
    step: int
    first: int
    last: int

    @property
    def elements(self) -> int:
        return self.rows * self.width * self.channels


@dataclass(frozen=True)
class Layout:
    """The slots of a plan, the slot and the first row of each stored map, and the direction of each pass."""

    slots: tuple[Slot, ...]
    places: dict[Node, tuple[int, int]]
    directions: tuple[int, ...]

    def elements(self, number: int) -> int:
        """Return how many numbers are stored while the pass ``number`` runs."""
        return sum(slot.elements for slot in self.slots if slot.first <= number <= slot.last)

    @property
    def peak(self) -> int:
        """The number of numbers that are stored at once, at most."""
        return max((self.elements(number) for number in range(len(self.directions))), default=0)


def layout_of(plan: Plan) -> Layout:
    """Return where the maps of ``plan`` are stored."""
    last_read = _last_reads(plan)
    search = _Search(plan.passes, last_read)
    found = search.run(0, {}, 0)
    assert found is not None  # a pass for which nothing fits uses new slots
    places, directions = found
    return _measured(plan, last_read, places, tuple(directions))


def _last_reads(plan: Plan) -> dict[Node, int]:
    last: dict[Node, int] = {}
    for number, one in enumerate(plan.passes):
        last.update(dict.fromkeys(one.sources, number))
    return last


def _shape(one: Pass, node: Node) -> tuple[int, ...]:
    return node.channels, *one.sizes[node]


class _Search:
    """Chooses a direction for each pass, and a slot for each map, by trying."""

    def __init__(self, passes: tuple[Pass, ...], last_read: dict[Node, int]) -> None:
        self.passes, self.last_read = passes, last_read
        self.failed: set[tuple[object, ...]] = set()
        self.strict = True

    def run(self, number: int, places: Places, slots: int) -> tuple[Places, list[int]] | None:
        """Return the places of all maps and the directions of the passes from ``number`` on."""
        for self.strict in (True, False):
            self.failed.clear()
            found = self._from(number, places, slots)
            if found is not None:
                return found
        return None

    def _from(self, number: int, places: Places, slots: int) -> tuple[Places, list[int]] | None:
        if number == len(self.passes):
            return places, []
        alive = tuple(
            (node, place) for node, place in places.items() if self.last_read.get(node, -1) >= number
        )
        state = (number, alive)
        if state in self.failed:
            return None
        for direction in (DOWN, UP):
            placed = self._placed(number, places, slots, direction)
            if placed is not None:
                rest = self._from(number + 1, *placed)
                if rest is not None:
                    return rest[0], [direction, *rest[1]]
        self.failed.add(state)
        return None

    def _placed(self, number: int, places: Places, slots: int, direction: int) -> tuple[Places, int] | None:
        """Place the maps that a pass stores. Return None if one could replace another, but not this way."""
        one, places = self.passes[number], dict(places)
        dying = [node for node in one.sources if node in places and self.last_read[node] == number]
        for node in one.stored:
            alike = [old for old in dying if _shape(one, old) == _shape(one, node)]
            fitting = [old for old in alike if 0 <= places[old][1] - direction <= _STEPS]
            if fitting:
                old = fitting[0]
                dying.remove(old)
                places[node] = places[old][0], places[old][1] - direction
            elif alike and self.strict:
                return None
            else:
                places[node] = slots, _MIDDLE
                slots += 1
        return places, slots


def _measured(plan: Plan, last_read: dict[Node, int], places: Places, directions: tuple[int, ...]) -> Layout:
    """Return the layout with the sizes of the slots, as far as they are used."""
    maps: dict[int, list[Node]] = {}
    for node, (number, _) in places.items():
        maps.setdefault(number, []).append(node)
    written = {node: number for number, one in enumerate(plan.passes) for node in one.stored}
    slots, rows = [], dict[Node, tuple[int, int]]()
    for number, nodes in sorted(maps.items()):
        steps = [places[node][1] for node in nodes]
        step = max((_step(plan.passes[last_read[node]], node) for node in nodes[:-1]), default=0)
        height, width = plan.sizes[nodes[0]]
        high = height + (max(steps) - min(steps)) * step
        ends = written[nodes[0]], last_read[nodes[-1]]
        slots.append(Slot(high, width, nodes[0].channels, step, *ends))
        rows.update({node: (number, (places[node][1] - min(steps)) * step) for node in nodes})
    return Layout(tuple(slots), rows, directions)


def _step(one: Pass, node: Node) -> int:
    """Return how many rows a map must lie before ``node`` to overwrite nothing that the pass still reads."""
    return one.tile + one.overhang(node, 0)
