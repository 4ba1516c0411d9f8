"""What the kernels' tests share: where they run, and fresh memory that is poisoned with NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Every empty tensor is full of NaN, so that what a kernel does not write is seen. (A side of torch's deterministic mode.)"""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    """The GPU, or the CPU through Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"
