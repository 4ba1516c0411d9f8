"""The outputs of the phases of an iteration, for the phases after them, also if a batch is run in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastcyclegan.recipes.recipe import Inputs, Phase, PhaseResult, RecipeError, unprepared


def joined(losses: Sequence[Tensor]) -> Tensor:
    """Return the losses of a batch, given those of its parts, which are weighted by their sizes."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum(0)


class Outputs:
    """What the phases of one iteration have returned so far. ``parts`` are the ranges of samples that are run
    one after another.

    Outputs stay in their parts, because an output that keeps its graph must get all gradients of its part in
    one backward pass.
    """

    def __init__(self, inputs: Inputs, parts: Sequence[tuple[int, int]]) -> None:
        self.inputs, self.parts = inputs, parts
        self._results: dict[str, list[Tensor]] = {}

    def add(self, results: Sequence[PhaseResult]) -> None:
        """Add the outputs of a phase, one result for each part."""
        for name in results[0].outputs:
            self._results[name] = [result.outputs[name] for result in results]

    def prepared(self, phase: Phase) -> Inputs:
        """Return the inputs of ``phase`` for the whole batch, with the outputs of earlier phases it uses."""
        wanted = {}
        for name in phase.wants:
            tensors = self._parts_of(name, phase)
            wanted[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return phase.prepare(dataclasses.replace(self.inputs, earlier=wanted))

    def _parts_of(self, name: str, phase: Phase) -> list[Tensor]:
        if name not in self._results:
            found = ", ".join(self._results) if self._results else "nothing"
            raise RecipeError(f"phase {phase.name} wants {name}, but the phases before it return {found}")
        return self._results[name]

    def parts_for(self, phase: Phase) -> Iterator[tuple[Inputs, float]]:
        """Yield the inputs of ``phase`` for each part of the batch, and the part's share of the samples."""
        count = self.inputs.count
        if len(self.parts) == 1:
            yield self.prepared(phase), 1
            return
        whole = None if phase.prepare is unprepared else self.prepared(phase)
        for number, (start, stop) in enumerate(self.parts):
            if whole is not None:
                part = whole.part(start, stop)
            else:
                earlier = {name: self._parts_of(name, phase)[number] for name in phase.wants}
                part = dataclasses.replace(self.inputs.part(start, stop), earlier=earlier)
            yield part, (stop - start) / count
