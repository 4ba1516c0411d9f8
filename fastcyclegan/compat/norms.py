"""The official norms: constructors by name, and what they are called in our networks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from fastcyclegan import reference

NormLayer = Callable[[int], nn.Module]

Identity = nn.Identity
"""The official ``Identity``, a module that returns its input. It takes the place of a norm."""


def norm_argument(norm_layer: NormLayer) -> tuple[reference.Norm, bool]:
    """Convert ``norm_layer`` to the arguments ``norm`` and ``affine`` of our networks.

    ``norm`` is a name, such as "instance", if our networks have a name for this kind of norm. Otherwise, it
    is ``norm_layer`` itself.
    """
    kind = getattr(norm_layer, "func", norm_layer)
    options: dict[str, Any] = {}
    has_other_options = False
    if isinstance(norm_layer, functools.partial):
        options = dict(norm_layer.keywords)
        has_other_options = bool(norm_layer.args) or not options.keys() <= {"affine", "track_running_stats"}
    if norm_layer is _identity:
        return "none", False
    if has_other_options:
        return norm_layer, False
    if kind is nn.InstanceNorm2d and not options.get("track_running_stats"):
        return "instance", bool(options.get("affine"))
    if kind is nn.BatchNorm2d and all(options.values()):
        return "batch", False
    return norm_layer, False


def _identity(channels: int) -> nn.Module:
    return Identity()


def get_norm_layer(norm_type: str = "instance") -> NormLayer:
    """Return a constructor for the norm ``norm_type``: batch, syncbatch, instance or none.

    Raises NotImplementedError for any other name.
    """
    layers: dict[str, NormLayer] = {
        "batch": functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True),
        "syncbatch": functools.partial(nn.SyncBatchNorm, affine=True, track_running_stats=True),
        "instance": functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False),
        "none": _identity,
    }
    if norm_type not in layers:
        raise NotImplementedError(f"norm must be one of {', '.join(layers)}, got {norm_type!r}")
    return layers[norm_type]
