"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.kernels import descriptor_launch
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.testing import tf32
from tests.planted import clear_failures


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Turn TF32 off, so that results agree to the last bits of fp32 on a GPU too.

    A test can turn it on.
    """
    with tf32(False):
        yield


@pytest.fixture
def auto_is_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make impl="auto" choose the kernels, as on a GPU, in a process that has seen no failure."""
    clear_failures(monkeypatch)
    with as_on_gpu(), tf32(False):
        yield


@pytest.fixture
def unprobed_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear what the process knows about tensor descriptors, as in a new process."""
    monkeypatch.setattr(descriptor_launch, "_answers", {})
    monkeypatch.setattr(descriptor_launch, "_refused", set())
