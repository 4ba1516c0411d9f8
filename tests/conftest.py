"""Fixtures and settings for all tests: small images on disk, a separate cache, and skipping of GPU tests."""

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

# Without a GPU, kernels run in Triton's interpreter. Triton reads this variable when it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from PIL import Image

from fastcyclegan.config import DataConfig, Preprocess
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.equal_sizes import required_size
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.loader import Source

# Torch 2.13 looks up a compiled graph by its operators, without regard to the vector width of its code. With
# another ATEN_CPU_CAPABILITY, the cached code would read wrong numbers.
_CAPABILITY = torch.backends.cpu.get_cpu_capability().lower()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_{_CAPABILITY}"
)

# A package for the tests of official checkouts. It contains its own modules named test_*.py.
collect_ignore = ["official/checkout"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session", autouse=True)
def _no_overflow_checks() -> None:
    """Disable the interpreter's overflow checks, which take a third of the time of the kernel tests.

    Images this small cannot cause an integer overflow.
    """
    if not torch.cuda.is_available() and importlib.util.find_spec("triton"):
        from triton.runtime.interpreter import interpreter_builder

        interpreter_builder.options = dataclasses.replace(
            interpreter_builder.options, sanitize_overflow=False
        )


@pytest.fixture(autouse=True)
def _separate_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    share_cpp_kernels(cache, tmp_path_factory)


def share_cpp_kernels(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let ``cache``, a folder like ~/.cache, have the C++ kernels that are compiled once for all workers."""
    shared = cache / "fastcyclegan" / "cpu"
    if not shared.exists():
        compiled = tmp_path_factory.getbasetemp().parent / "cpp"
        compiled.mkdir(mode=0o700, exist_ok=True)
        shared.parent.mkdir(parents=True, exist_ok=True)
        shared.symlink_to(compiled)


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill new tensors with NaN in kernel tests, so that elements that are never written are noticed.

    This is a feature of torch's deterministic mode.
    """
    if Path(__file__).with_name("kernels") not in request.path.parents:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> str:
    """The device on which to test kernels: the GPU, or the CPU with Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    """Save ``image`` under ``name`` with the options of Pillow, and return its path."""
    path = tmp_path / name
    image.save(path, **options)
    return path


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
    """Return an image with features of a photograph: gradients, sharp edges up to black and white, noise."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([127 + 90 * np.sin(x / (5 + 9 * c) + y / (17 - 4 * c)) for c in range(3)], -1)
    left, top = rng.integers(0, (max(width // 2, 1), max(height // 2, 1)))
    pixels[top : top + height // 3, left : left + width // 3] = rng.choice([0.0, 255.0], 3)
    return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def source(paths: list[Path], fit: Fit, batch_size: int = 1) -> Source:
    checked = dict(zip(paths, check_files(paths), strict=True))
    return Source(paths, fit, checked, required_size(paths, checked, fit, DataConfig(batch_size=batch_size)))


def unpaired(
    root: Path, channels: tuple[int, int] = (3, 3), mode: Preprocess = "resize_and_crop"
) -> tuple[Source, Source]:
    """Write 5 images of domain A and 3 of B. Return them as sources with load size 24 and crop size 16."""
    a, b = write_images(root / "A", 5, seed=1), write_images(root / "B", 3, seed=2)
    return source(a, Fit(mode, 24, 16, channels[0])), source(b, Fit(mode, 24, 16, channels[1]))


def both(a: Source, b: Source) -> dict[str, Source]:
    """Return the sources of two domains as loaders take them."""
    return {"A": a, "B": b}


def same_batch(x: Batch, y: Batch) -> bool:
    if (x.paths, x.samples) != (y.paths, y.samples) or x.images.keys() != y.images.keys():
        return False
    return all(torch.equal(images, y.images[side]) for side, images in x.images.items())


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of small noise images: 5 in trainA, 4 in trainB, and 2 each in testA and testB."""
    root = tmp_path / "photos"
    for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
        write_images(root / name, count, seed=seed)
    return root
