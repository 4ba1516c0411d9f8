"""Tell which implementation computes each convolution of a network on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastcyclegan.kernels.cpu.convolution import recorded


def convolutions_computed_by(net: nn.Module, x: Tensor) -> dict[str, str]:
    """Run ``net`` once on the images x, without a gradient, and return what computes its convolutions.

    The keys are the names of its convolutions in the order of the network. The values are "winograd", "wide"
    and "few" for the C++ kernels, and "PyTorch". A convolution that runs as a module of its own is PyTorch's.
    """
    with torch.no_grad(), recorded() as calls:
        net(x)
    kernels = dict(calls)
    names = {}
    for name, module in net.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.conv._ConvNd) and isinstance(weight, Tensor):
            names[name] = kernels.get(weight.data_ptr(), "PyTorch")
    return names


def describe_convolutions(names: dict[str, str]) -> str:
    """Return one line that counts ``convolutions_computed_by``, such as "18 winograd, 4 PyTorch"."""
    counts: dict[str, int] = {}
    for by in names.values():
        counts[by] = counts.get(by, 0) + 1
    return ", ".join(f"{count} {by}" for by, count in counts.items())
