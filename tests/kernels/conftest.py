"""Shared by the kernels' tests: what they are asked under."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.kernels import descriptor_launch
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.testing import tf32
from tests.planted import forget


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """On a GPU too results are compared to the last bits of fp32, unless a test says otherwise."""
    with tf32(False):
        yield


@pytest.fixture
def auto_is_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """auto means the kernels, as on a GPU, in a process that has met no failure."""
    forget(monkeypatch)
    with as_on_gpu(), tf32(False):
        yield


@pytest.fixture
def asked_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows of tensor descriptors."""
    monkeypatch.setattr(descriptor_launch, "_answers", {})
    monkeypatch.setattr(descriptor_launch, "_refused", set())
