"""Shared by all tests: small images on disk, a cache folder of their own, and the skip of tests that need a
GPU.
"""

from __future__ import annotations

import dataclasses
import getpass
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

# Without a GPU the kernels are interpreted. Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from PIL import Image

from fastcyclegan.config import Preprocess
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.image_file import Fit
from fastcyclegan.data.loader import Source

# Torch 2.13 finds a compiled graph again by its operators, and not by the vectors that its code was made for:
# a run with another ATEN_CPU_CAPABILITY would read wrong numbers with it.
_CAPABILITY = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_{_CAPABILITY}"
)

# A package for the tests of official checkouts, with modules called test_*.py of its own.
collect_ignore = ["official/checkout"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session", autouse=True)
def _no_overflow_checks() -> None:
    """The interpreter checks each integer sum for an overflow, which no image this small has: a third of
    the kernels' tests' time.
    """
    if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
        from triton.runtime.interpreter import interpreter_builder

        interpreter_builder.options = dataclasses.replace(
            interpreter_builder.options, sanitize_overflow=False
        )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """In the kernels' tests every empty tensor is full of NaN (a side of torch's deterministic mode): what is
    not written is seen.
    """
    if request.path.parent.name != "kernels":
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    """Where kernels are tested: the GPU, or the CPU through Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_images(
    folder: Path, count: int, size: tuple[int, int] = (24, 20), seed: int = 0, suffix: str = ".png"
) -> list[Path]:
    """Write ``count`` noise images of ``size`` (width, height) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{n:03d}{suffix}" for n in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return paths


def scene(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return an image with what photographs have: slopes, sharp edges up to black and white, and a little
    noise.
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([127 + 90 * np.sin(x / (5 + 9 * c) + y / (17 - 4 * c)) for c in range(3)], -1)
    left, top = rng.integers(0, (max(width // 2, 1), max(height // 2, 1)))
    pixels[top : top + height // 3, left : left + width // 3] = rng.choice([0.0, 255.0], 3)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def source(paths: list[Path], fit: Fit) -> Source:
    return Source(paths, fit, dict(zip(paths, check_files(paths), strict=True)))


def unpaired(
    root: Path, channels: tuple[int, int] = (3, 3), mode: Preprocess = "resize_and_crop"
) -> tuple[Source, Source]:
    """Write 5 images of A and 3 of B and return them as sources with loads of 24 and crops of 16 pixels."""
    a, b = write_images(root / "A", 5, seed=1), write_images(root / "B", 3, seed=2)
    return source(a, Fit(mode, 24, 16, channels[0])), source(b, Fit(mode, 24, 16, channels[1]))


def same_batch(x: Batch, y: Batch) -> bool:
    same_samples = (x.paths_A, x.paths_B, x.samples) == (y.paths_A, y.paths_B, y.samples)
    return same_samples and torch.equal(x.A, y.A) and torch.equal(x.B, y.B)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """trainA (5), trainB (4), testA and testB (2) with small noise images."""
    root = tmp_path / "photos"
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_images(root / name, count, seed=seed)
    return root
