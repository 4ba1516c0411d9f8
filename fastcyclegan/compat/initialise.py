"""The official initialisation of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastcyclegan import reference


def init_weights(net: nn.Module, init_type: str = "normal", init_gain: float = 0.02) -> None:
    """Initialise the weights of ``net`` in place, as the official ``init_weights`` does.

    Every layer whose class has Conv or Linear in its name gets weights of ``init_type`` (normal, xavier,
    kaiming or orthogonal) and biases of 0, and every BatchNorm2d weights from N(1, init_gain). Unlike the
    official function, this one prints nothing. Raises NotImplementedError for any other ``init_type``.
    """
    if init_type not in reference.INIT_TYPES:
        raise NotImplementedError(
            f"init_type must be one of {', '.join(reference.INIT_TYPES)}, got {init_type!r}"
        )

    def initialise(layer: nn.Module) -> None:
        kind = type(layer).__name__
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if weight is None:
            return
        if "Conv" in kind or "Linear" in kind:
            reference.INITIALISERS[init_type](weight.data, init_gain)
        elif "BatchNorm2d" in kind:
            nn.init.normal_(weight.data, 1.0, init_gain)
        else:
            return
        if bias is not None:
            nn.init.zeros_(bias.data)

    # As in the official code, a layer is initialised after those inside it, which decides the order of draws.
    net.apply(initialise)


def init_net(
    net: nn.Module, init_type: str = "normal", init_gain: float = 0.02, gpu_ids: Sequence[int] = ()
) -> nn.Module:
    """Initialise ``net`` with ``init_weights`` and return it, as the official ``init_net`` does.

    If ``gpu_ids`` is not empty, the network is moved to the first of these GPUs, and wrapped in DataParallel
    over all of them.
    """
    if gpu_ids:
        net = nn.DataParallel(net.to(torch.device("cuda", gpu_ids[0])), list(gpu_ids))
    init_weights(net, init_type, init_gain)
    return net
