"""Helpers that make arguments for operators, shared by several test files."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)


def impl(required: bool) -> str:
    return "triton" if required else "auto"
