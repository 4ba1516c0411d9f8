"""What computes a reflection-padded convolution: the Triton kernels, or cuDNN with the norm kernels writing
its padding.

A table that ships says which was faster, forward and backward together, by GPU and shape:
``backends/<GPU>.json`` beside this file, made by ``scripts/gpu_suite.py``. A shape that it does not hold is
computed by Triton, and said to be unmeasured. Sizes and batches count by powers of two.
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
    """Return the name of a shape in the table: op is "residual_block" or "reflect_conv"."""
    sizes = (f"{_octave(images)}/{weights}", _octave(pixels), f"{in_channels}-{out_channels}", f"{k}x{k}")
    return " ".join(map(str, (op, str(dtype).removeprefix("torch."), *sizes)))


def _octave(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def table_file(gpu: str) -> Path:
    return SHIPPED / f"{gpu.replace(' ', '_').replace('/', '_')}.json"


@functools.lru_cache
def _table(device_index: int | None) -> dict[str, dict[str, float]]:
    """Return the times that ship for a GPU, {shape: {backend: milliseconds}}."""
    path = table_file(torch.cuda.get_device_name(device_index))
    if not path.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(path.read_text())
    return found


def measured(
    op: str, x: Tensor, dtype: torch.dtype, weights: int, out_channels: int, k: int
) -> dict[str, float]:
    """Return the milliseconds of each backend for ``op`` on x [N, C, H, W] in ``dtype``, empty where nobody
    measured them.
    """
    if x.device.type != "cuda":
        return {}
    key = backend_key(op, dtype, x.shape[0], weights, x.shape[2] * x.shape[3], x.shape[1], out_channels, k)
    return _table(x.device.index).get(key, {})


def backend_of(op: str, x: Tensor, dtype: torch.dtype, weights: int, out_channels: int, k: int) -> Backend:
    """Return what computes ``op`` on x [N, C, H, W] in ``dtype`` with so many weights: the faster one, Triton
    where nobody measured.
    """
    times = measured(op, x, dtype, weights, out_channels, k)
    if times and times["cudnn"] < times["triton"]:
        return "cudnn"
    return "triton"


def describe_backends(device: torch.device) -> str:
    """Return a line on what computes reflection-padded convolutions on ``device``, and whether that was
    measured.
    """
    table = _table(device.index) if device.type == "cuda" else {}
    if not table:
        return "Triton (unmeasured on this device)"
    ours = sum(times["triton"] <= times["cudnn"] for times in table.values())
    return (
        f"by measurement: of {len(table)} shapes Triton is faster in {ours}, cuDNN in {len(table) - ours};"
        " others Triton (unmeasured)"
    )
