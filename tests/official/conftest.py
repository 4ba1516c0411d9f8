"""Fixtures for the tests of official checkouts: small images in the official folder layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_images

# Failed assertions in this module are reported in as much detail as those in tests.
pytest.register_assert_rewrite("tests.official.training")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_images(tmp_path / "photos" / name, count, size=(32, 32), seed=seed)
    return tmp_path / "photos"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A dataset of small pairs, A on the left and B on the right of each file."""
    for seed, (name, count) in enumerate({"train": 5, "test": 2}.items()):
        write_images(tmp_path / "pairs" / name, count, size=(128, 64), seed=seed)
    return tmp_path / "pairs"
