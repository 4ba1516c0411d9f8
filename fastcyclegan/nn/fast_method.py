"""The method ``fast`` of the generators, which prepares them for inference."""

from __future__ import annotations

import importlib

from torch import nn


class Fast:
    """Adds ``fast`` to a network."""

    def fast(self, precision: str = "fp32") -> nn.Module:
        """Return a module with the same call that computes the same images faster, without gradients.

        It uses the network's weights as they are at each call, in eval mode. The network itself does not
        change. ``precision`` is "fp32", or "bf16" on devices with bf16 instructions; the result has the
        network's dtype in both. On an NVIDIA GPU, image sizes that come again run as a CUDA graph.

        Raises ValueError for another precision, for weights that are not float32, and for bf16 on a device
        without such instructions. The module raises RuntimeError if it is asked for gradients.
        """
        # Imported here and by name: inference is built on the networks, not the other way round.
        room = importlib.import_module("fastcyclegan.inference.fast_network")
        module: nn.Module = room.FastNetwork(self, precision)
        return module
