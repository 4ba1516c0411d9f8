"""Argument checks shared by the operators, and the errors that they raise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import is_autocast_on


def check_pixels(x: Tensor) -> None:
    """Raise ValueError, with torch's message, for images of one pixel, which have no variance."""
    # Not math.prod: the sides can be symbolic once torch.compile has seen several sizes.
    if all(side == 1 for side in x.shape[2:]):
        raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.shape}")


def check_vectors(op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError or TypeError if ``weight`` or ``bias`` is given and does not fit x.

    Each must have one number per channel of x, in the dtype of x or fp32, and must be on the device of x.
    """
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is None:
            continue
        if vector.shape != (x.shape[1],):
            raise ValueError(
                f"{op}: {name} must be [{x.shape[1]}], one number per channel of x, got {list(vector.shape)}"
            )
        if vector.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"{op}: {name} must be {x.dtype} (the dtype of x) or torch.float32, got {vector.dtype}"
            )
        check_device(op, name, vector, x)


def check_device(op: str, name: str, t: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``t`` is on the device of x."""
    if t.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of x, {x.device}, got {t.device}")


def check_weights(op: str, name: str, x: Tensor, weights: Sequence[Tensor]) -> None:
    """Raise ValueError or TypeError unless ``weights`` fit x [N, C, H, W].

    They must be P weights [O, C, k, k] of the same shape and dtype, with k odd and N a multiple of P.
    """
    check_images(op, x)
    if not weights:
        raise ValueError(f"{op}: {name} must be a weight or a non-empty list of weights, got an empty list")
    first = weights[0]
    for weight in weights:
        if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
            raise ValueError(
                f"{op}: {name} must be [O, {x.shape[1]}, k, k] for x with {x.shape[1]} channels, got"
                f" {list(weight.shape)}"
            )
        if weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(
                f"{op}: {name} must have an odd square kernel, got {weight.shape[2]} x {weight.shape[3]}"
            )
        if weight.shape[0] == 0:
            raise ValueError(f"{op}: {name} must have at least one output channel, got {list(weight.shape)}")
        if weight.shape != first.shape:
            raise ValueError(
                f"{op}: all weights in {name} must have the same shape, got {list(first.shape)} and"
                f" {list(weight.shape)}"
            )
        _check_dtypes(op, name, weight, first, x)
        check_device(op, name, weight, x)
    if x.shape[0] % len(weights):
        raise ValueError(
            f"{op}: with {len(weights)} weights, the batch size must be a multiple of {len(weights)}, got"
            f" {x.shape[0]}"
        )


def _check_dtypes(op: str, name: str, tensor: Tensor, first: Tensor, x: Tensor) -> None:
    """Raise TypeError unless ``tensor`` has the dtype of ``first``, which must be fp32 or that of ``x``."""
    if tensor.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{op}: {name} must be {x.dtype} (the dtype of x) or torch.float32, got {tensor.dtype}"
        )
    if tensor.dtype != first.dtype:
        raise TypeError(
            f"{op}: all tensors in {name} must have the same dtype, got {first.dtype} and {tensor.dtype}"
        )


def check_alike(op: str, name: str, x: Tensor, tensors: Sequence[Tensor]) -> None:
    """Raise ValueError or TypeError unless all ``tensors`` have the same shape and dtype, and fit x.

    Their dtype must be fp32 or that of x, and they must be on the device of x.
    """
    for t in tensors:
        if t.shape != tensors[0].shape:
            raise ValueError(
                f"{op}: all tensors in {name} must have the same shape, got {list(tensors[0].shape)} and"
                f" {list(t.shape)}"
            )
        _check_dtypes(op, name, t, tensors[0], x)
        check_device(op, name, t, x)


def check_biases(op: str, x: Tensor, biases: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Raise ValueError or TypeError unless ``biases`` is empty or has one bias [O] per weight [O, ...]."""
    if biases and len(biases) != len(weights):
        raise ValueError(f"{op}: bias must have as many tensors as weight, {len(weights)}, got {len(biases)}")
    channels = weights[0].shape[0]
    for bias in biases:
        if bias.shape != (channels,):
            raise ValueError(
                f"{op}: bias must be [{channels}], one number per output channel, got {list(bias.shape)}"
            )
        if bias.dtype not in (x.dtype, torch.float32):
            raise TypeError(
                f"{op}: bias must be {x.dtype} (the dtype of x) or torch.float32, got {bias.dtype}"
            )
        check_device(op, "bias", bias, x)


def check_padding(op: str, x: Tensor, padding: int, kernel: int) -> None:
    """Raise ValueError unless x can be padded by reflection and is then large enough for the kernel.

    ``padding`` must be less than the height and width of x, and the padded x must be no smaller than the
    kernel, whose size is ``kernel``.
    """
    size = min(x.shape[2:])
    if not 0 <= padding < max(size, 1):
        raise ValueError(
            f"{op}: padding must be at least 0 and less than the height and width of x, got padding"
            f" {padding} and x of shape {tuple(x.shape)}"
        )
    if size + 2 * padding < kernel:
        raise ValueError(
            f"{op}: the padded x must be at least as large as the kernel, got size {size} with padding"
            f" {padding} and kernel size {kernel}"
        )


def check_integer(op: str, name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is an integer."""
    if not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an integer, got {type(value).__name__}")


def check_tensor(op: str, x: Any) -> None:
    """Raise TypeError unless x is a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{op}: x must be floating point, got {x.dtype}")


def check_images(op: str, x: Any) -> None:
    """Raise TypeError unless x is a floating-point tensor, and ValueError unless it is [N, C, H, W]."""
    check_tensor(op, x)
    if x.dim() != 4:
        raise ValueError(f"{op}: x must be [N, C, H, W], got shape {tuple(x.shape)}")


def tensors_of(op: str, name: str, value: Any) -> list[Tensor]:
    """Return ``value``, a tensor or an iterable of tensors, as a list. Raises TypeError for anything else."""
    if isinstance(value, Tensor):
        return [value]
    tensors = list(value) if isinstance(value, Iterable) else [value]
    for t in tensors:
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor or a list of tensors, got {type(t).__name__}")
    return tensors


def biases_of(op: str, bias: Any, count: int) -> list[Tensor]:
    """Return ``bias`` as a list of tensors for ``count`` weights.

    A single tensor is shared by all weights, so it is repeated. An iterable of tensors should have one for
    each weight, which is not checked here. For None, or for an iterable of None, the list is empty. Raises
    TypeError for anything else.
    """
    if bias is None:
        return []
    if isinstance(bias, Tensor):
        return [bias] * count
    if isinstance(bias, Iterable):
        bias = list(bias)
        if all(b is None for b in bias):
            return []
    return tensors_of(op, "bias", bias)


def under_autocast(x: Tensor, *lists: list[Tensor]) -> tuple[Any, ...]:
    """Return x and ``lists``, cast the way that autocast casts the inputs of PyTorch's convolutions.

    Nothing is cast if autocast is off or x is fp64. The fp32 tensors in ``lists`` stay fp32, because the
    operators round them on each use.
    """
    if not is_autocast_on(x) or x.dtype == torch.float64:
        return (x, *lists)
    dtype = torch.get_autocast_dtype(x.device.type)
    return (x.to(dtype), *([_in_autocast(t, dtype) for t in tensors] for tensors in lists))


def _in_autocast(t: Tensor, dtype: torch.dtype) -> Tensor:
    if t.dtype in (dtype, torch.float32):
        return t
    return t.to(dtype)
