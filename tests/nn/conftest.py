"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastcyclegan.testing import tf32


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Functions are compared here, not TF32's roundings, which PyTorch's convolutions and ours have of their
    own.
    """
    with tf32(False):
        yield
