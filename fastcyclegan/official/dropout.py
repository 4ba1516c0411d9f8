"""Dropout whose masks do not depend on the memory layout, so that a seed gives the masks of the checkout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OrderedDropout(nn.Dropout):
    """A dropout that drops the same values of a tensor in every memory layout.

    torch's own draws the mask in the order of the memory, and our kernels return channels_last tensors, where
    the checkout's networks return contiguous ones. The same numbers would then be other pixels.
    """

    images_are_separate = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.is_contiguous():
            return super().forward(x)
        # Drawn by the same operator, for a contiguous tensor of the same dtype and device.
        return x * F.dropout(torch.ones(x.shape, dtype=x.dtype, device=x.device), self.p)


def order_dropout(net: nn.Module) -> None:
    """Replace the dropout layers of ``net``, in place, by those that draw masks in the checkout's order."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                ordered = OrderedDropout(child.p, child.inplace)
                setattr(module, name, ordered.train(child.training))
