"""Run a plan: compute its passes tile by tile, and keep what later passes read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.nodes import Image, Moments, Node, Tools
from fastcyclegan.tiles.passes import Pass, Spans
from fastcyclegan.tiles.slots import DOWN, layout_of
from fastcyclegan.tiles.spans import Window, length, relative
from fastcyclegan.tiles.statistics import Gathered
from fastcyclegan.tiles.storage import Rows

Allocate = Callable[[tuple[int, int, int], torch.dtype], Rows]
"""Returns memory for a shape [rows, W, C]."""


@dataclass(frozen=True)
class Progress:
    """How far a computation is: the current pass and its tile, each of so many, and the share of the work."""

    number: int
    passes: int
    tile: int
    tiles: int
    share: float


@dataclass(frozen=True)
class Ends:
    """Where the pixels come from and go to, as windows [1, C, h, w], and who is told about the progress."""

    read: Callable[[Window], Tensor]
    write: Callable[[Window, Tensor], None]
    progress: Callable[[Progress], None] = lambda progress: None


class Execution:
    """One computation of ``plan`` with ``calls``. ``allocate`` gives memory for the stored maps."""

    def __init__(self, plan: Plan, calls: Calls, device: torch.device, allocate: Allocate) -> None:
        self.plan, self.layout, self.device, self.allocate = plan, layout_of(plan), device, allocate
        self._moments: dict[Node, Moments] = {}
        self._tools = Tools(calls, self._moments)
        self._slots: dict[int, Rows] = {}
        self._works, self._done = [one.work() for one in plan.passes], 0.0

    def run(self, ends: Ends) -> None:
        """Compute the result, without gradients. Whatever happens, the memory of the maps is given back."""
        try:
            with torch.no_grad():
                for number, one in enumerate(self.plan.passes):
                    self._run(number, one, ends)
                    self._free(number)
        finally:
            for rows in self._slots.values():
                rows.close()
            self._slots.clear()

    def _run(self, number: int, one: Pass, ends: Ends) -> None:
        gathered = Gathered()
        last: Tensor | None = None
        for tile, (rows, columns) in enumerate(self._tiles(number, one), start=1):
            maps = self._computed(one, rows, columns, ends)
            last = maps[one.target]
            window = rows.needed[one.target], columns.needed[one.target]
            if one.measured:
                pixels = length(window[0]) * length(window[1])
                gathered.add(pixels, *self._tools.calls.moments(last))
            for node in one.stored:
                whole = rows.needed[node], columns.needed[node]
                self._store(node, window, _part(maps[node], whole, window))
            if one.target is self.plan.result:
                ends.write(window, last)
            self._advance(number, one, tile, ends)
        if one.measured and last is not None:
            self._moments[one.target] = gathered.result(last)

    def _tiles(self, number: int, one: Pass) -> Iterator[tuple[Spans, Spans]]:
        bands = one.rows if self.layout.directions[number] == DOWN else one.rows[::-1]
        for rows in bands:
            for columns in one.columns:
                yield rows, columns

    def _computed(self, one: Pass, rows: Spans, columns: Spans, ends: Ends) -> dict[Node, Tensor]:
        """Return the target and the maps to store, each in the window that this tile needs."""
        kept = {one.target, *one.stored}
        last_use = {node: user for user in one.nodes for node in user.inputs}
        maps: dict[Node, Tensor] = {}
        for node in one.nodes:
            place = one.place(node, rows, columns)
            inputs = []
            for given in node.inputs:
                if given in maps:
                    whole = rows.needed[given], columns.needed[given]
                    inputs.append(_part(maps[given], whole, place.reads))
                else:
                    inputs.append(self._load(given, place.reads, ends))
            maps[node] = node.compute(inputs, place, self._tools)
            for given in node.inputs:
                if last_use[given] is node and given not in kept:
                    maps.pop(given, None)
        return maps

    def _load(self, node: Node, window: Window, ends: Ends) -> Tensor:
        if isinstance(node, Image):
            return ends.read(window)
        slot, first = self.layout.places[node]
        (top, bottom), columns = window
        pixels = self._slots[slot].read(((first + top, first + bottom), columns))
        return pixels.to(self.device).permute(2, 0, 1)[None]

    def _store(self, node: Node, window: Window, x: Tensor) -> None:
        slot, first = self.layout.places[node]
        if slot not in self._slots:
            size = self.layout.slots[slot]
            self._slots[slot] = self.allocate((size.rows, size.width, size.channels), x.dtype)
        (top, bottom), columns = window
        self._slots[slot].write(((first + top, first + bottom), columns), x[0].permute(1, 2, 0))

    def _free(self, number: int) -> None:
        for slot in list(self._slots):
            if self.layout.slots[slot].last <= number:
                self._slots.pop(slot).close()

    def _advance(self, number: int, one: Pass, tile: int, ends: Ends) -> None:
        done, total = self._done + self._works[number] * tile / one.tiles, sum(self._works)
        share = done / total if total else (number + tile / one.tiles) / len(self.plan.passes)
        ends.progress(Progress(number + 1, len(self.plan.passes), tile, one.tiles, share))
        if tile == one.tiles:
            self._done = done


def _part(x: Tensor, whole: Window, window: Window) -> Tensor:
    """Return ``window`` of x, which is the window ``whole``."""
    if whole == window:
        return x
    return x[:, :, relative(window[0], whole[0]), relative(window[1], whole[1])]
