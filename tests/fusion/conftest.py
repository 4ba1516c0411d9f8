"""Fixtures for the tests of ``fusion``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.kernels import dispatch
from fastcyclegan.testing import tf32


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Turn TF32 off: PyTorch's convolutions and ours round differently in TF32, which is not tested here."""
    with tf32(False):
        yield


@pytest.fixture(autouse=True)
def _without_cpp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let impl="auto" use PyTorch's operators on a CPU, so that fusing must not change a single bit.

    Tests with the marker ``cpp`` use the C++ kernels, whose sums are rounded differently.
    """
    if request.node.get_closest_marker("cpp") is None:
        monkeypatch.setattr(dispatch, "_can_use_cpp", lambda: False)
