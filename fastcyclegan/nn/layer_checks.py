"""Check whether a kernel may compute a layer in place of the layer's own forward.

This is allowed if the layer is exactly of a known class, uses the forward of that class, and has no hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastcyclegan import reference


def untouched(layer: nn.Module | None, *kinds: type[nn.Module]) -> bool:
    """Return whether ``layer`` is exactly one of ``kinds``, with the forward of its class and no hooks."""
    if layer is None or type(layer) not in kinds or "forward" in layer.__dict__:
        return False
    return not has_hooks(layer) and not _has_any_global_hook()


def has_hooks(module: nn.Module) -> bool:
    """Return whether any hook is registered on ``module`` itself."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def is_norm(layer: Any) -> bool:
    if not untouched(layer, nn.InstanceNorm2d, reference.InstanceNorm2d):
        return False
    return not layer.track_running_stats


def is_conv(layer: Any) -> bool:
    if not untouched(layer, nn.Conv2d, nn.ConvTranspose2d, reference.ResizeConv2d):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def activation(layer: Any) -> tuple[str, float] | None:
    if untouched(layer, nn.ReLU):
        return "relu", 0.0
    if untouched(layer, nn.LeakyReLU):
        return "leaky_relu", layer.negative_slope
    return None


def border_of(layer: Any, following: nn.Module | None) -> int:
    """Return the padding of the reflection pad ``layer`` if the convolution after it can apply it, or 0."""
    if not untouched(layer, nn.ReflectionPad2d) or not is_conv(following) or len(set(layer.padding)) > 1:
        return 0
    border: int = layer.padding[0]
    return border


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which to convolve ``x``: autocast's if autocast is on, otherwise the weight's."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype
