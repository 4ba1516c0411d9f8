"""Fixtures for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.training.state_writer import StateWriter
from tests.training.runs import at_once, run


@pytest.fixture
def uninterrupted(dataset: Path, tmp_path: Path) -> Path:
    run(dataset, tmp_path, "uninterrupted", "--max_iters", "150")
    return tmp_path / "uninterrupted"


@pytest.fixture
def saves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every periodic save complete before the next iteration. Which are left out depends on the disk."""
    monkeypatch.setattr(StateWriter, "write", at_once(StateWriter.write))
