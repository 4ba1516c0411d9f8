"""The Pillow loader: the plan's samples, whatever the workers; memory; files that break under way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pictures

from fastcyclegan.config import DataConfig
from fastcyclegan.data.folder import Batch, FolderLoader, Source, cache_in_ram
from fastcyclegan.data.picture import load_pixels, take_view
from fastcyclegan.data.plan import Plan
from fastcyclegan.data.scan import check_files
from fastcyclegan.errors import UserError

CPU = torch.device("cpu")


def make(tmp_path: Path, workers: int = 0, batch: int = 2, channels: tuple[int, int] = (3, 3), **changes: object) -> FolderLoader:
    config = DataConfig(num_threads=workers, load_size=24, crop_size=16, batch_size=batch, **changes)
    a = Source(write_pictures(tmp_path / "A", 5, seed=1), config, channels[0], 4)
    b = Source(write_pictures(tmp_path / "B", 3, seed=2), config, channels[1], 4)
    return FolderLoader(a, b, Plan(11, 5, 3, batch), CPU)


def same(x: Batch, y: Batch) -> bool:
    return torch.equal(x.A, y.A) and torch.equal(x.B, y.B) and (x.paths_A, x.samples) == (y.paths_A, y.samples)


def test_batches_are_the_plan_s_samples(tmp_path: Path) -> None:
    loader = make(tmp_path)
    batches = list(loader.batches(0, 7))
    assert [len(batch.samples) for batch in batches] == [2, 2, 1, 2, 2, 1, 2]  # the partial batch is kept
    for iteration, batch in enumerate(batches):
        epoch, numbers = loader.plan.batch(iteration)
        assert batch.A.is_contiguous(memory_format=torch.channels_last)
        assert (batch.A.shape[1:], batch.A.dtype) == ((3, 16, 16), torch.float32)
        for row, i in enumerate(numbers):
            sample = loader.plan.sample(epoch, i)
            path = loader.a.paths[sample.index_A]
            pixels = take_view(load_pixels(path, loader.a.config, 3), sample.view_A, 16).astype(np.float64)
            assert batch.paths_A[row] == str(path)
            np.testing.assert_allclose(batch.A[row].permute(1, 2, 0).numpy(), pixels / 127.5 - 1, atol=2e-7)


def test_workers_and_starting_points_change_nothing(tmp_path: Path) -> None:
    expected = list(make(tmp_path).batches(0, 6))
    found = list(make(tmp_path, workers=2).batches(2, 6))
    assert all(same(x, y) for x, y in zip(expected[2:], found, strict=True))
    assert list(make(tmp_path).batches(3, 3)) == []


def test_gray_and_colour(tmp_path: Path) -> None:
    batch = next(make(tmp_path, channels=(1, 3)).batches(0, 1))
    assert (batch.A.shape[1], batch.B.shape[1]) == (1, 3)


def test_loading_does_not_touch_the_random_state(tmp_path: Path) -> None:
    """Dropout, and so a resume, depends on torch's own generator."""
    before = torch.get_rng_state()
    list(make(tmp_path, workers=1).batches(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_cache_gives_the_same_batches_and_reads_no_files(tmp_path: Path) -> None:
    loader = make(tmp_path)
    expected = list(loader.batches(0, 5))
    sizes = [[(c.width, c.height) for c in check_files(source.paths)] for source in (loader.a, loader.b)]
    a, b = cache_in_ram([loader.a, loader.b], sizes)
    for path in (*a.paths, *b.paths):
        path.unlink()
    found = list(FolderLoader(a, b, loader.plan, CPU).batches(0, 5))
    assert all(same(x, y) for x, y in zip(expected, found, strict=True))
    with pytest.raises(UserError, match=r"--cache ram: the pictures take .* MiB, more than half of the 0 MiB free"):
        cache_in_ram([loader.a, loader.b], sizes, free=1000)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_under_way_is_named(tmp_path: Path, workers: int) -> None:
    loader = make(tmp_path, workers)
    loader.b.paths[1].write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^\S*/B/001.png: not a picture that Pillow can read$"):
        list(loader.batches(0, 30))


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(tmp_path, workers=1)

    def die(index: int, view: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Source, "view", lambda self, index, view: die(index, view))
    with pytest.raises(UserError, match="a loader process died"):
        list(loader.batches(0, 4))
