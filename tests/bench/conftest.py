"""Fixtures shared by the tests of the benches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.baselines import plain_networks
from bench.gpu_outcome import Context
from bench.parity import Judge
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch
from tests.bench.parts import ROOT
from tests.bench.small_steps import SMALL


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    # At its end a stage packs the compiled kernels of this cache, and takes as long as there are many.
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    for name in ("work", "results"):
        (tmp_path / name).mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "TRITON_INTERPRET": "1"}
    return Context(tmp_path / "work", tmp_path / "results", environment)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(
        plain_networks(SMALL),
        [random_batch(32, Plan(0, 9, 9), n) for n in range(2)],
        "cpu",
        SMALL,
    )
