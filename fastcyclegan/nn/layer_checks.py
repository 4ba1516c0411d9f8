"""Check a network's input, and whether a kernel may compute a layer in place of the layer's own forward.

The latter is allowed if the layer is exactly of a known class, uses the forward of that class, and has no
hooks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastcyclegan import reference
from fastcyclegan.kernels.dispatch import is_autocast_on


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


def has_triton_layers(net: nn.Module) -> bool:
    """Return whether ``net`` has layers that Triton computes wherever it computes the network."""
    return any(isinstance(module, nn.ReflectionPad2d) or is_norm(module) for module in net.modules())


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


def require_images(network: nn.Module, layers: nn.Module, x: Any) -> None:
    """Raise TypeError or ValueError unless x can be the input of ``network``, which starts with ``layers``.

    x must be a floating-point tensor [N, C, H, W] or [C, H, W] with the channels that the first convolution
    takes. If another layer than the official one comes first, that layer checks its input itself. While
    torch.jit.trace runs, nothing is checked here: a trace would warn, and not contain the check.
    """
    if torch.jit.is_tracing():
        return
    name = type(network).__name__
    if not isinstance(x, Tensor):
        if hasattr(type(x), "__torch_function__"):  # a stand-in for a tensor, such as that of torch.fx
            return
        raise TypeError(f"{name}: x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}")
    channels = _channels_of(layers)
    if channels is None:
        return
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(
            f"{name}: x must be [N, {channels}, H, W] or [{channels}, H, W], got shape {tuple(x.shape)}"
        )


def _channels_of(layers: nn.Module) -> int | None:
    """Return how many channels the first convolution of ``layers`` takes, or None if that is not known."""
    if has_hooks(layers):
        return None
    for layer in layers.children():
        if isinstance(layer, nn.Conv2d) and untouched(layer, nn.Conv2d):
            return layer.weight.shape[1] * layer.groups
        if not untouched(layer, nn.ReflectionPad2d):
            return None
    return None


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which to convolve ``x``: autocast's if autocast is on, otherwise the weight's."""
    if is_autocast_on(x):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype
