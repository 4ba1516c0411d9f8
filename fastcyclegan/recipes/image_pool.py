"""The replay history as tensors on the device, driven by decisions drawn beforehand.

The rule is ``reference.ReplayPool``'s (Shrivastava et al. 2017, as CycleGAN uses it). Nothing in it depends
on what the images show, so ``decide`` settles on the host which image is shown and which slot is written,
from the numbers that the sample carries; ``take`` then only gathers and scatters, by indices that may come as
a tensor: work of one shape whatever they are, so that a CUDA graph can hold it. The same decisions give the
same images on every device, and a resumed run needs no random state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Indices = list[list[int]]
"""What a query does with its N images, three rows of N: image n shown is number ``own[n]`` of the query,
or, where that is -1, slot ``stored[n]`` as it was before it; afterwards slot ``written[n]`` holds image n
of the query (the capacity: no slot does)."""


class ImagePool:
    """``capacity`` slots for images of one domain; 0 passes images through.

    The slots are one tensor while all images have one size, and a list of tensors from the first other size
    on.
    """

    def __init__(self, capacity: int = 50) -> None:
        if capacity < 0:
            raise ValueError(f"ImagePool: capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.filled = 0
        # One more than the capacity: what is to be kept nowhere is written there.
        self._memory: Tensor | list[Tensor] | None = None

    @property
    def slots(self) -> Tensor | list[Tensor] | None:
        """The slots [capacity, C, H, W], or a list of tensors [C, H, W]; None before the first query."""
        if self._memory is None:
            return None
        return self._memory[: self.capacity]

    def decide(self, draws: Sequence[tuple[float, float]]) -> Indices:
        """Decide a query of ``len(draws)`` images from their (swap, place) in [0, 1), and count the slots
        it fills.
        """
        own, stored = [], []
        writer: dict[int, int] = {}
        for n, (swap, place) in enumerate(draws):
            shown, slot = n, 0
            if self.capacity and self.filled < self.capacity:
                writer[self.filled] = n
                self.filled += 1
            elif self.capacity and swap < 0.5:
                slot = int(place * self.capacity)
                # A slot that this same query wrote holds one of the query's own images.
                shown = writer.get(slot, -1)
                writer[slot] = n
            own.append(shown)
            stored.append(slot)
        written = [self.capacity] * len(own)
        for slot, n in writer.items():
            written[n] = slot
        return [own, stored, written]

    def query(self, images: Tensor, draws: Sequence[tuple[float, float]]) -> Tensor:
        """Return what the discriminator is shown for ``images`` [N, C, H, W] (detached), and store what is to
        be stored.
        """
        return self.take(images, self.decide(draws))

    def holds(self, size: tuple[int, ...]) -> bool:
        """Whether images of ``size`` (C, H, W) are all that is in here, so that a query needs no decision
        of the host.
        """
        if self.capacity == 0:
            return True
        return isinstance(self._memory, Tensor) and self._memory.shape[1:] == size

    def _make_room(self, images: Tensor) -> None:
        if self._memory is None:
            memory = images.new_zeros((self.capacity + 1, *images.shape[1:]))
            self._memory = memory.to(memory_format=torch.channels_last)
        elif isinstance(self._memory, Tensor) and self._memory.shape[1:] != images.shape[1:]:
            self._memory = [slot.clone() for slot in self._memory]

    def take(self, images: Tensor, indices: Indices | Tensor) -> Tensor:
        """``query`` by the ``indices`` of a plan, or the same as a tensor [3, N] of int64 on the device of
        ``images``.
        """
        images = images.detach()
        if self.capacity == 0:
            return images
        self._make_room(images)
        assert self._memory is not None
        if isinstance(self._memory, list):
            rows = indices.tolist() if isinstance(indices, Tensor) else indices
            return self._take_from_list(images, rows, self._memory)
        if not isinstance(indices, Tensor):
            indices = torch.tensor(indices, dtype=torch.int64, device=images.device).view(3, -1)
        return self._take_from_tensor(images, indices, self._memory)

    def _take_from_tensor(self, images: Tensor, indices: Tensor, memory: Tensor) -> Tensor:
        own, stored, written = indices.unbind(0)
        # As rows in memory: selecting images would leave channels_last.
        slots, images = memory.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
        chosen = images
        if images.shape[0] > 1:
            chosen = images.index_select(0, own.clamp(min=0))
        shown = torch.where((own < 0).view(-1, 1, 1, 1), slots.index_select(0, stored), chosen)
        slots.index_copy_(0, written, images)
        return shown.permute(0, 3, 1, 2)

    def _take_from_list(self, images: Tensor, indices: Indices, slots: list[Tensor]) -> Tensor:
        own, stored, written = indices
        shown = []
        for n, slot in zip(own, stored, strict=True):
            shown.append(slots[slot] if n < 0 else images[n])
        for n, slot in enumerate(written):
            if slot < self.capacity:
                slots[slot] = images[n].clone()
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the pool as plain values and tensors. They are the pool's own: copy them before the next
        query.
        """
        return {"capacity": self.capacity, "filled": self.filled, "slots": self.slots}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what ``state_dict`` gave, on ``device``. Raises ValueError where the capacity is
        another."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"pool_size was {state['capacity']}, is {self.capacity}")
        slots = state["slots"]
        self.filled = state["filled"]
        if isinstance(slots, list):
            self._memory = [slot.to(device) for slot in [*slots, slots[0]]]
        elif slots is None:
            self._memory = None
        else:
            memory = slots.new_zeros((self.capacity + 1, *slots.shape[1:]), device=device)
            memory[: self.capacity].copy_(slots)
            self._memory = memory.to(memory_format=torch.channels_last)
