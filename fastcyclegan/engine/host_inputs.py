"""The numbers that travel to the device with each batch: learning rate, pool indices and the like, in one
copy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

# For batches of tens of thousands.
ROOM = 1 << 20


class HostInputs:
    """Memory on the device whose head is the learning rate, and what comes with each batch after it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory = torch.zeros(ROOM, dtype=torch.uint8, device=device)
        # fp32 is what fused Adam reads on a GPU; elsewhere it is a Python number in the end.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        self.lr = self.memory[:8].view(kind)[:1].view(())

    def send(self, lr: float, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put ``lr`` and ``numbers`` (on the host) on the device in one copy; return where they lie there.

        For ``numbers`` of the same shapes that is always the same place. Raises ValueError where they do not
        fit.
        """
        pieces = [torch.tensor([lr], dtype=self.lr.dtype), *numbers.values()]
        sizes = [-(-piece.numel() * piece.element_size() // 8) * 8 for piece in pieces]
        if sum(sizes) > self.memory.numel():
            raise ValueError(
                f"a batch needs {sum(sizes)} bytes of numbers, there is room for {self.memory.numel()}"
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
