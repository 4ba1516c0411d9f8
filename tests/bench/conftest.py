"""What holds for every test of this room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.gpu_outcome import Surroundings
from tests.bench.parts import ROOT


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    for name in ("work", "results"):
        (tmp_path / name).mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "TRITON_INTERPRET": "1"}
    return Surroundings(tmp_path / "work", tmp_path / "results", environment)
