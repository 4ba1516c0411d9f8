"""Choose between the Triton kernels and cuDNN for reflection-padded convolutions.

With cuDNN, the norm kernels write the padding. The choice depends on which of the two was faster for a shape,
forward and backward together. The times are stored in a table for each GPU, ``backends/<GPU>.json`` beside
this file, which ``scripts/gpu_suite.py`` creates. A shape that is missing from the table is computed by
Triton and reported as unmeasured. Image sizes and batch sizes are rounded up to powers of two.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "cudnn"]
SHIPPED = Path(__file__).parent / "backends"


def backend_key(
    op: str,
    dtype: torch.dtype,
    images: int,
    weights: int,
    pixels: int,
    in_channels: int,
    out_channels: int,
    k: int,
) -> str:
    """Return the key under which a shape is listed. ``op`` is "residual_block" or "reflect_conv"."""
    sizes = (f"{_octave(images)}/{weights}", _octave(pixels), f"{in_channels}-{out_channels}", f"{k}x{k}")
    return " ".join(map(str, (op, str(dtype).removeprefix("torch."), *sizes)))


def _octave(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def table_file(gpu: str) -> Path:
    return SHIPPED / f"{gpu.replace(' ', '_').replace('/', '_')}.json"


@functools.lru_cache
def _table(device_index: int | None) -> dict[str, dict[str, float]]:
    """Return the table shipped for a GPU, {shape: {backend: milliseconds}}, or {} if there is none."""
    path = table_file(torch.cuda.get_device_name(device_index))
    if not path.exists():
        return {}
    table: dict[str, dict[str, float]] = json.loads(path.read_text())
    return table


def measured(
    op: str, x: Tensor, dtype: torch.dtype, weights: int, out_channels: int, k: int
) -> dict[str, float]:
    """Return the milliseconds that each backend takes for ``op`` on x [N, C, H, W] in ``dtype``.

    ``weights`` is the number of weights. Returns {} if the shape was not measured.
    """
    if x.device.type != "cuda":
        return {}
    key = backend_key(op, dtype, x.shape[0], weights, x.shape[2] * x.shape[3], x.shape[1], out_channels, k)
    return _table(x.device.index).get(key, {})


def backend_of(op: str, x: Tensor, dtype: torch.dtype, weights: int, out_channels: int, k: int) -> Backend:
    """Return the faster backend for ``op`` on x [N, C, H, W] in ``dtype``, or Triton if it was not measured.

    ``weights`` is the number of weights.
    """
    times = measured(op, x, dtype, weights, out_channels, k)
    if times and times["cudnn"] < times["triton"]:
        return "cudnn"
    return "triton"


def is_measured(device: torch.device) -> bool:
    """Return whether there is a table for ``device``."""
    return device.type == "cuda" and bool(_table(device.index))


def describe_backends(device: torch.device) -> str:
    """Describe in one line which backend computes reflection-padded convolutions on ``device``.

    The line also states whether the choice is based on measurements.
    """
    table = _table(device.index) if device.type == "cuda" else {}
    if not table:
        return "Triton (unmeasured on this device)"
    ours = sum(times["triton"] <= times["cudnn"] for times in table.values())
    return (
        f"chosen by measurement for {len(table)} shapes (Triton is faster for {ours}, cuDNN for"
        f" {len(table) - ours}), Triton for all other shapes (unmeasured)"
    )
