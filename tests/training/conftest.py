"""Fixtures for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.training.state_writer import StateWriter
from tests.training.runs import run


@pytest.fixture
def uninterrupted(dataset: Path, tmp_path: Path) -> Path:
    run(dataset, tmp_path, "uninterrupted", "--max_iters", "150")
    return tmp_path / "uninterrupted"


@pytest.fixture
def saves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every periodic save complete before the next iteration.

    Otherwise, a save is left out while the last one is still being written, which depends on the disk.
    """
    write = StateWriter.write

    def at_once(self: StateWriter, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        self.close()

    monkeypatch.setattr(StateWriter, "write", at_once)
