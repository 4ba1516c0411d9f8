"""A loader with cached images yields the same batches as one without a cache, and reads no file again.

Images that do not fit in memory are rejected before anything is read.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan.config import DataConfig, Preprocess
from fastcyclegan.data.cached_loader import CachedLoader, bytes_needed, cache_images
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.pillow_loader import FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import StoppedError, UserError
from tests.conftest import same_batch, unpaired, write_images

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["resize_and_crop", "crop", "none"])
@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_yields_the_same_batches_without_reading_files(tmp_path: Path, kind: str, mode: Preprocess) -> None:
    a, b = unpaired(tmp_path, mode=mode)
    plan = Plan(3, 5, 3)
    uncached = FolderLoader(a, b, plan, CPU) if kind == "folder" else DaliLoader(a, b, plan, CPU)
    expected = list(uncached.batches(0, 12))
    readers = [PillowReader(s.fit, 2) if kind == "folder" else DaliReader(s.fit, CPU, 2) for s in (a, b)]
    cached = cache_images((a, b), readers, CPU)
    assert [images.bytes for images in cached] == [
        sum(row.numel() for row in images.rows) for images in cached
    ]
    for path in (*a.paths, *b.paths):
        path.unlink()
    actual = list(CachedLoader(a, b, plan, CPU, *cached).batches(0, 12))
    assert all(same_batch(x, y) for x, y in zip(expected, actual, strict=True))


def test_rejects_images_that_do_not_fit_before_reading_them(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    assert bytes_needed(a) == 5 * 24 * 24 * 3
    for path in (*a.paths, *b.paths):
        path.unlink()
    with pytest.raises(
        UserError, match=r"--cache ram: the images need 0 MiB, more than half of the 0 MiB that are free; use"
    ):
        cache_images((a, b), [PillowReader(a.fit, 1)] * 2, CPU, free=2 * 8 * 24 * 24 * 3 - 1)


@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_the_start_can_be_stopped_between_images(tmp_path: Path, kind: str) -> None:
    a, b = unpaired(tmp_path)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return len(asked) >= 3

    config = DataConfig(cache="ram")
    with pytest.raises(StoppedError):
        make_loader(choose(kind, CPU, 1), a, b, Plan(3, 5, 3), CPU, config, print, stopping=stopping)
    assert len(asked) == 3


def test_caches_a_file_that_grew_since_it_was_checked(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path, mode="crop")
    write_images(tmp_path / "A", 5, size=(64, 64))
    cached = cache_images((a, b), [PillowReader(a.fit, 1)] * 2, CPU)
    batch = next(CachedLoader(a, b, Plan(3, 5, 3), CPU, *cached).batches(0, 1))
    assert batch.A.shape == (1, 3, 16, 16)


def test_reports_cached_memory_and_requires_a_gpu(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    logged: list[str] = []
    choice = choose("folder", CPU, 0)
    make_loader(choice, a, b, Plan(3, 5, 3), CPU, DataConfig(cache="ram"), logged.append)
    assert logged == ["--cache ram: 8 images cached in 0.0 MiB"]
    with pytest.raises(
        UserError,
        match="--cache gpu keeps images on a CUDA GPU, but this run uses the device cpu; use --cache ram",
    ):
        make_loader(choice, a, b, Plan(3, 5, 3), CPU, DataConfig(cache="gpu"), logged.append)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["ram", "gpu"])
def test_cache_yields_the_loader_s_batches_on_a_gpu(tmp_path: Path, cache: str) -> None:
    device = torch.device("cuda")
    a, b = unpaired(tmp_path)
    plan = Plan(3, 5, 3, 2)
    choice = choose("auto", device)
    expected = list(make_loader(choice, a, b, plan, device, DataConfig(), print).batches(0, 9))
    actual = list(make_loader(choice, a, b, plan, device, DataConfig(cache=cache), print).batches(0, 9))
    assert all(same_batch(x, y) for x, y in zip(expected, actual, strict=True))
