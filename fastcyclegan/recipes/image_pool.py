"""The replay pool, stored as tensors on the device and driven by decisions made on the host.

The replacement policy is that of ``reference.ReplayPool`` (Shrivastava et al. 2017, as used in CycleGAN). It
does not depend on the contents of the images. So ``decide`` determines on the host which image is returned
and which slot is written, from random numbers that are part of each sample. ``take`` then only gathers and
scatters. Its indices can be a tensor, and its work has the same shape for all indices, so it can be captured
in a CUDA graph. The same decisions return the same images on every device, and a resumed run needs no random
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Indices = list[list[int]]
"""The decisions for a query of N images, as three rows of N numbers.

The n-th returned image is image ``new[n]`` of the query or, if that is -1, the previous content of slot
``stored[n]``. Afterwards, image n of the query is in slot ``written[n]``, or in no slot if that equals the
capacity.
"""


class ImagePool:
    """A replay pool with ``capacity`` slots for images of one domain. With capacity 0, images pass through.

    The slots are one tensor as long as all images have the same size. From the first image of a different
    size on, they are a list of tensors.
    """

    def __init__(self, capacity: int = 50) -> None:
        if capacity < 0:
            raise ValueError(f"ImagePool: capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.filled = 0
        # One slot more than the capacity: images that are not stored are written there.
        self._memory: Tensor | list[Tensor] | None = None
        self._is_restored = False  # and not used since

    @property
    def slots(self) -> Tensor | list[Tensor] | None:
        """The slots [capacity, C, H, W], or a list of tensors [C, H, W]; None before the first query."""
        if self._memory is None:
            return None
        return self._memory[: self.capacity]

    def decide(self, draws: Sequence[tuple[float, float]]) -> Indices:
        """Decide which images a query returns and which slots it writes.

        ``draws`` contains the random numbers (swap, place) in [0, 1) of each image of the query. Slots that
        the query fills are counted in ``filled``.
        """
        new, stored = [], []
        writer: dict[int, int] = {}
        for n, (swap, place) in enumerate(draws):
            shown, slot = n, 0
            if self.capacity and self.filled < self.capacity:
                writer[self.filled] = n
                self.filled += 1
            elif self.capacity and swap < 0.5:
                slot = int(place * self.capacity)
                # If this query has already written the slot, it contains one of the query's own images.
                shown = writer.get(slot, -1)
                writer[slot] = n
            new.append(shown)
            stored.append(slot)
        written = [self.capacity] * len(new)
        for slot, n in writer.items():
            written[n] = slot
        return [new, stored, written]

    def query(self, images: Tensor, draws: Sequence[tuple[float, float]]) -> Tensor:
        """Return the images to show to the discriminator instead of ``images`` [N, C, H, W], detached.

        New images are stored by the pool's replacement policy.
        """
        return self.take(images, self.decide(draws))

    def holds(self, size: tuple[int, ...]) -> bool:
        """Return whether all stored images have ``size`` (C, H, W), so that the host need not be involved."""
        if self.capacity == 0:
            return True
        if self._is_restored:  # the dtype of the next images, which depends on the device, is not known yet
            return False
        return isinstance(self._memory, Tensor) and self._memory.shape[1:] == size

    def _make_room(self, images: Tensor) -> None:
        if self._is_restored:
            self._adopt(images.dtype)
        if self._memory is None:
            memory = images.new_zeros((self.capacity + 1, *images.shape[1:]))
            self._memory = memory.to(memory_format=torch.channels_last)
        elif isinstance(self._memory, Tensor) and self._memory.shape[1:] != images.shape[1:]:
            self._memory = [slot.clone() for slot in self._memory]

    def _adopt(self, dtype: torch.dtype) -> None:
        """Convert the stored images to ``dtype``: a run can be resumed in another precision."""
        self._is_restored = False
        if isinstance(self._memory, list):
            self._memory = [slot.to(dtype) for slot in self._memory]
        elif self._memory is not None:
            self._memory = self._memory.to(dtype)

    def take(self, images: Tensor, indices: Indices | Tensor) -> Tensor:
        """Run a query with the ``indices`` that ``decide`` returned.

        ``indices`` can also be an int64 tensor [3, N] on the device of ``images``.
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
        new, stored, written = indices.unbind(0)
        # Permute to rows in memory, because selecting from NCHW would not keep channels_last.
        slots, images = memory.permute(0, 2, 3, 1), images.permute(0, 2, 3, 1)
        chosen = images
        if images.shape[0] > 1:
            chosen = images.index_select(0, new.clamp(min=0))
        shown = torch.where((new < 0).view(-1, 1, 1, 1), slots.index_select(0, stored), chosen)
        slots.index_copy_(0, written, images)
        return shown.permute(0, 3, 1, 2)

    def _take_from_list(self, images: Tensor, indices: Indices, slots: list[Tensor]) -> Tensor:
        new, stored, written = indices
        shown = []
        for n, slot in zip(new, stored, strict=True):
            shown.append(slots[slot] if n < 0 else images[n])
        for n, slot in enumerate(written):
            if slot < self.capacity:
                slots[slot] = images[n].clone()
        return torch.stack(shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the pool as plain values and tensors.

        The tensors are not copies: copy them before the next query.
        """
        return {"capacity": self.capacity, "filled": self.filled, "slots": self.slots}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore the pool from ``state_dict``, as copies on ``device``.

        Raises ValueError if the capacity differs.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the saved pool has pool_size {state['capacity']}, but this run uses {self.capacity}"
            )
        slots = state["slots"]
        self.filled, self._is_restored = state["filled"], True
        if isinstance(slots, list):
            self._memory = [slot.to(device, copy=True) for slot in [*slots, slots[0]]]
        elif slots is None:
            self._memory = None
        else:
            memory = slots.new_zeros((self.capacity + 1, *slots.shape[1:]), device=device)
            memory[: self.capacity].copy_(slots)
            self._memory = memory.to(memory_format=torch.channels_last)
