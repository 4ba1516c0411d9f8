"""Shared by all tests: small pictures on disk, a cache folder of their own, and the skip of tests that need a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (24, 20), seed: int = 0, suffix: str = ".png") -> list[Path]:
    """Write ``count`` noise pictures of ``size`` (width, height) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{n:03d}{suffix}" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """trainA (5), trainB (4), testA and testB (2) with small noise pictures."""
    root = tmp_path / "photos"
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_pictures(root / name, count, seed=seed)
    return root
