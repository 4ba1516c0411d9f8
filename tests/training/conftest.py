"""Fixtures for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import run


@pytest.fixture
def uninterrupted(dataset: Path, tmp_path: Path) -> Path:
    run(dataset, tmp_path, "uninterrupted", "--max_iters", "150")
    return tmp_path / "uninterrupted"
