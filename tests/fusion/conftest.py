"""Fixtures for the tests of ``fusion``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.testing import tf32


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Turn TF32 off: PyTorch's convolutions and ours round differently in TF32, which is not tested here."""
    with tf32(False):
        yield
