"""Fixtures for the tests of the kernels."""

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

    A test that needs TF32 can turn it on again.
    """
    with tf32(False):
        yield


@pytest.fixture
def auto_is_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make impl="auto" choose the kernels even on a CPU, and clear all failures seen by this process."""
    clear_failures(monkeypatch)
    with as_on_gpu(), tf32(False):
        yield


@pytest.fixture
def unprobed_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the results of earlier probes for tensor descriptors, as if this were a new process."""
    monkeypatch.setattr(descriptor_launch, "_answers", {})
    monkeypatch.setattr(descriptor_launch, "_refused", set())
