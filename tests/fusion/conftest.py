"""What holds for every test of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.testing import tf32


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    """Functions are compared here, not TF32's roundings, which PyTorch's convolutions and ours have of their
    own.
    """
    with tf32(False):
        yield
