"""What a layer is, and whether something else may compute it: exactly of a class, with its own forward,
listened to by nobody.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastcyclegan import reference


def untouched(layer: nn.Module | None, *kinds: type[nn.Module]) -> bool:
    """Whether ``layer`` is exactly one of ``kinds``, with its own forward, and nobody listens to it."""
    if layer is None or type(layer) not in kinds or "forward" in layer.__dict__:
        return False
    return not has_hooks(layer) and not _has_any_global_hook()


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to ``module`` itself."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)


def is_norm(layer: nn.Module | None) -> bool:
    return untouched(layer, nn.InstanceNorm2d, reference.InstanceNorm2d) and not layer.track_running_stats  # type: ignore[union-attr]


def is_conv(layer: nn.Module | None) -> bool:
    plain = untouched(layer, nn.Conv2d, nn.ConvTranspose2d, reference.ResizeConv2d)
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)  # type: ignore[union-attr]


def activation(layer: nn.Module) -> tuple[str, float] | None:
    if untouched(layer, nn.ReLU):
        return "relu", 0.0
    return ("leaky_relu", layer.negative_slope) if untouched(layer, nn.LeakyReLU) else None  # type: ignore[return-value]


def border_of(layer: nn.Module, following: nn.Module | None) -> int:
    """Return the border of a reflection pad that the convolution after it can take over, else 0."""
    if not (untouched(layer, nn.ReflectionPad2d) and is_conv(following)):
        return 0
    return layer.padding[0] if len(set(layer.padding)) == 1 else 0  # type: ignore[arg-type, index, return-value]


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype that a convolution of ``x`` computes in here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
