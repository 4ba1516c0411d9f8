"""Copy the numbers that an iteration needs to the device in one transfer.

Examples are the learning rate and the indices of images in the pools.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# Size in bytes, enough for batches of tens of thousands of samples.
ROOM = 1 << 20


class HostInputs:
    """A block of device memory for the learning rate and, after it, the other numbers of a batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = torch.zeros(ROOM, dtype=torch.uint8, device=device)
        # Fused Adam reads fp32 on a GPU. Elsewhere the rate ends up as a Python number.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        self.lr = self.memory[:8].view(kind)[:1].view(())

    def send(self, lr: float, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy ``lr`` and ``numbers`` from the host to the device in one transfer.

        Returns the tensors on the device under the names of ``numbers``. As long as the shapes stay the same,
        so do their addresses. Raises ValueError if the numbers do not fit.
        """
        pieces = [torch.tensor([lr], dtype=self.lr.dtype), *numbers.values()]
        sizes = [-(-piece.numel() * piece.element_size() // 8) * 8 for piece in pieces]
        if sum(sizes) > self.memory.numel():
            raise ValueError(
                f"HostInputs: numbers must fit in {self.memory.numel()} bytes, got {sum(sizes)} bytes"
            )
        host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        rows = host.numpy()
        placed, start = [], 0
        for piece, size in zip(pieces, sizes, strict=True):
            length = piece.numel() * piece.element_size()
            rows[start : start + length] = np.frombuffer(piece.numpy().tobytes(), np.uint8)
            placed.append(self.memory[start : start + length].view(piece.dtype).view(piece.shape))
            start += size
        self.memory[:start].copy_(host, non_blocking=True)
        return dict(zip(numbers, placed[1:], strict=True))
