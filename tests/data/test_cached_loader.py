"""A loader with cached images yields the same batches as one without a cache, and reads no file again.

Images that do not fit in memory are rejected before anything is read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcyclegan.config import DataConfig, Preprocess
from fastcyclegan.data.cached_loader import CachedLoader, bytes_needed, cache_images
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.pillow_loader import FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import StoppedError, UserError
from tests.conftest import both, same_batch, source, unpaired, write_images

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["resize_and_crop", "crop", "none"])
@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_yields_the_same_batches_without_reading_files(tmp_path: Path, kind: str, mode: Preprocess) -> None:
    a, b = unpaired(tmp_path, mode=mode)
    plan = Plan(3, 5, 3)
    uncached = FolderLoader(both(a, b), plan, CPU) if kind == "folder" else DaliLoader(both(a, b), plan, CPU)
    expected = list(uncached.batches(0, 12))
    readers = {
        side: PillowReader(s.fit, 2) if kind == "folder" else DaliReader(s.fit, CPU, 2)
        for side, s in both(a, b).items()
    }
    cached = cache_images(both(a, b), readers, CPU)
    for images in cached.values():
        assert images.bytes == sum(row.numel() for row in images.rows)
    for path in (*a.paths, *b.paths):
        path.unlink()
    actual = list(CachedLoader(both(a, b), plan, CPU, cached).batches(0, 12))
    assert all(same_batch(x, y) for x, y in zip(expected, actual, strict=True))


def test_halves_are_cached_apart(tmp_path: Path) -> None:
    """The memory that they need is known."""
    a = source(write_images(tmp_path, 3, (48, 20)), Fit("none"))
    sources = {"A": replace(a, half="left"), "B": replace(a, half="right")}
    assert bytes_needed(sources["A"]) == 3 * 24 * 20 * 3
    cached = cache_images(sources, dict.fromkeys("AB", PillowReader(a.fit, 1)), CPU)
    for images in cached.values():
        assert images.bytes == sum(row.numel() for row in images.rows) == 3 * 24 * 20 * 3
    assert not any(torch.equal(*rows) for rows in zip(cached["A"].rows, cached["B"].rows, strict=True))


def test_rejects_images_that_do_not_fit_before_reading_them(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    assert bytes_needed(a) == 5 * 24 * 24 * 3
    for path in (*a.paths, *b.paths):
        path.unlink()
    with pytest.raises(
        UserError, match=r"--cache ram: the images need 0 MiB, more than half of the 0 MiB that are free; use"
    ):
        cache_images(
            both(a, b), dict.fromkeys("AB", PillowReader(a.fit, 1)), CPU, free=2 * 8 * 24 * 24 * 3 - 1
        )


@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_the_start_can_be_stopped_between_images(tmp_path: Path, kind: str) -> None:
    a, b = unpaired(tmp_path)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) >= 3

    config = DataConfig(cache="ram")
    with pytest.raises(StoppedError):
        make_loader(choose(kind, CPU, 1), both(a, b), Plan(3, 5, 3), CPU, config, print, stopping=stopping)
    assert len(asked) == 3


def test_caches_a_file_that_grew_since_it_was_checked(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path, mode="crop")
    write_images(tmp_path / "A", 5, size=(64, 64))
    cached = cache_images(both(a, b), dict.fromkeys("AB", PillowReader(a.fit, 1)), CPU)
    batch = next(CachedLoader(both(a, b), Plan(3, 5, 3), CPU, cached).batches(0, 1))
    assert batch.A.shape == (1, 3, 16, 16)


def test_reports_cached_memory_and_requires_a_gpu(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    logged: list[str] = []
    choice = choose("folder", CPU, 0)
    make_loader(choice, both(a, b), Plan(3, 5, 3), CPU, DataConfig(cache="ram"), logged.append)
    assert logged == ["--cache ram: 8 images cached in 0.0 MiB"]
    with pytest.raises(
        UserError,
        match="--cache gpu keeps images on a CUDA GPU, but this run uses the device cpu; use --cache ram",
    ):
        make_loader(choice, both(a, b), Plan(3, 5, 3), CPU, DataConfig(cache="gpu"), logged.append)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["ram", "gpu"])
def test_cache_yields_the_loader_s_batches_on_a_gpu(tmp_path: Path, cache: str) -> None:
    device = torch.device("cuda")
    a, b = unpaired(tmp_path)
    plan = Plan(3, 5, 3, 2)
    choice = choose("auto", device)
    expected = list(make_loader(choice, both(a, b), plan, device, DataConfig(), print).batches(0, 9))
    actual = list(make_loader(choice, both(a, b), plan, device, DataConfig(cache=cache), print).batches(0, 9))
    assert all(same_batch(x, y) for x, y in zip(expected, actual, strict=True))
