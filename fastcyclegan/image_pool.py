"""The replay history as tensors on the device, driven by decisions drawn beforehand.

The rule is ``reference.ReplayPool``'s (Shrivastava et al. 2017, as CycleGAN uses it). Nothing in it depends on what the pictures show, so
``plan`` settles on the host which picture is shown and which slot is written, from the numbers that the sample carries; ``query`` then
only gathers and scatters. The same decisions give the same pictures on every device, and a resumed run needs no random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PoolIndices:
    """What a query does with its N pictures: picture n shown is ``own[n]`` of the query, or slot ``stored[n]`` as it was before it
    where ``own[n]`` is -1; afterwards slot ``slots[k]`` holds picture ``sources[k]`` of the query."""

    own: list[int]
    stored: list[int]
    slots: list[int]
    sources: list[int]


class ImagePool:
    """``capacity`` slots for pictures of one domain; 0 passes pictures through.

    The slots are one tensor [capacity, C, H, W] while all pictures have one size, and a list of tensors from the first other size on.
    """

    def __init__(self, capacity: int = 50) -> None:
        if capacity < 0:
            raise ValueError(f"ImagePool: capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.filled = 0
        self.slots: Tensor | list[Tensor] | None = None

    def plan(self, draws: Sequence[tuple[float, float]]) -> PoolIndices:
        """Decide a query of ``len(draws)`` pictures from their (swap, place) in [0, 1), and count the slots it fills."""
        own, stored = [], []
        written: dict[int, int] = {}
        for n, (swap, place) in enumerate(draws):
            shown, slot = n, 0
            if self.capacity and self.filled < self.capacity:
                written[self.filled] = n
                self.filled += 1
            elif self.capacity and swap < 0.5:
                slot = int(place * self.capacity)
                # A slot that this same query wrote holds one of the query's own pictures.
                shown = written.get(slot, -1)
                written[slot] = n
            own.append(shown)
            stored.append(slot)
        return PoolIndices(own, stored, list(written), list(written.values()))

    def query(self, images: Tensor, draws: Sequence[tuple[float, float]]) -> Tensor:
        """Return what the discriminator is shown for ``images`` [N, C, H, W] (detached), and store what is to be stored."""
        images = images.detach()
        indices = self.plan(draws)
        if self.capacity == 0:
            return images
        self._make_room(images)
        if isinstance(self.slots, list):
            return self._query_list(images, indices, self.slots)
        assert self.slots is not None
        shown = images
        if -1 in indices.own or indices.own != list(range(len(indices.own))):
            from_slots = torch.tensor([n < 0 for n in indices.own], device=images.device).view(-1, 1, 1, 1)
            own = torch.tensor(indices.own, device=images.device).clamp(min=0)
            stored = torch.tensor(indices.stored, device=images.device)
            shown = torch.where(from_slots, self.slots.index_select(0, stored), images.index_select(0, own))
        if indices.slots:
            self.slots[torch.tensor(indices.slots, device=images.device)] = images[torch.tensor(indices.sources, device=images.device)]
        return shown

    def _make_room(self, images: Tensor) -> None:
        if self.slots is None:
            self.slots = images.new_zeros((self.capacity, *images.shape[1:]))
            self.slots = self.slots.to(memory_format=torch.channels_last)
        elif isinstance(self.slots, Tensor) and self.slots.shape[1:] != images.shape[1:]:
            self.slots = [slot.clone() for slot in self.slots]

    @staticmethod
    def _query_list(images: Tensor, indices: PoolIndices, slots: list[Tensor]) -> Tensor:
        shown = [slots[slot] if n < 0 else images[n] for n, slot in zip(indices.own, indices.stored, strict=True)]
        for slot, source in zip(indices.slots, indices.sources, strict=True):
            slots[slot] = images[source].clone()
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the pool as plain values and tensors. They are the pool's own: copy them before the next query."""
        return {"capacity": self.capacity, "filled": self.filled, "slots": self.slots}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what ``state_dict`` gave, on ``device``. Raises ValueError where the capacity is another."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"pool_size was {state['capacity']}, is {self.capacity}")
        slots = state["slots"]
        self.filled = state["filled"]
        if isinstance(slots, list):
            self.slots = [slot.to(device) for slot in slots]
        else:
            self.slots = None if slots is None else slots.to(device)
