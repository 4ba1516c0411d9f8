"""Images held in memory: the same batches, no file read again, refused before anything is read where they
do not fit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan.config import DataConfig, Preprocess
from fastcyclegan.data.cached_loader import CachedLoader, bytes_needed, free_memory, hold
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.pillow_loader import FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError
from tests.conftest import same_batch, unpaired, write_images

CPU = torch.device("cpu")


@pytest.mark.parametrize("mode", ["resize_and_crop", "crop", "none"])
@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_the_same_batches_and_no_files(tmp_path: Path, kind: str, mode: Preprocess) -> None:
    a, b = unpaired(tmp_path, mode=mode)
    plan = Plan(3, 5, 3)
    uncached = FolderLoader(a, b, plan, CPU) if kind == "folder" else DaliLoader(a, b, plan, CPU)
    expected = list(uncached.batches(0, 12))
    readers = [PillowReader(s.fit, 2) if kind == "folder" else DaliReader(s.fit, CPU, 2) for s in (a, b)]
    held = hold((a, b), readers, CPU)
    assert [one.bytes for one in held] == [sum(row.numel() for row in one.rows) for one in held]
    for path in (*a.paths, *b.paths):
        path.unlink()
    found = list(CachedLoader(a, b, plan, CPU, *held).batches(0, 12))
    assert all(same_batch(x, y) for x, y in zip(expected, found, strict=True))


def test_what_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    assert bytes_needed(a) == 5 * 24 * 24 * 3
    for path in (*a.paths, *b.paths):
        path.unlink()
    with pytest.raises(
        UserError, match=r"--cache ram: the images take 0 MiB, more than half of the 0 MiB free"
    ):
        hold((a, b), [PillowReader(a.fit, 1)] * 2, CPU, free=2 * 8 * 24 * 24 * 3 - 1)
    assert free_memory(CPU) > 2**20


def test_a_file_that_grew_since_it_was_checked(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path, mode="crop")
    write_images(tmp_path / "A", 5, size=(64, 64))
    held = hold((a, b), [PillowReader(a.fit, 1)] * 2, CPU)
    batch = next(CachedLoader(a, b, Plan(3, 5, 3), CPU, *held).batches(0, 1))
    assert batch.A.shape == (1, 3, 16, 16)


def test_what_is_held_is_said_and_a_gpu_is_asked_for(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    logged: list[str] = []
    choice = choose("folder", CPU, 0)
    make_loader(choice, a, b, Plan(3, 5, 3), CPU, DataConfig(cache="ram"), logged.append)
    assert logged == ["--cache ram: 8 images held in 0.0 MiB"]
    with pytest.raises(
        UserError,
        match="--cache gpu keeps images on a CUDA GPU, and this run is on the device cpu; use --cache ram",
    ):
        make_loader(choice, a, b, Plan(3, 5, 3), CPU, DataConfig(cache="gpu"), logged.append)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["ram", "gpu"])
def test_on_a_gpu_the_cache_gives_the_loader_s_batches(tmp_path: Path, cache: str) -> None:
    device = torch.device("cuda")
    a, b = unpaired(tmp_path)
    plan = Plan(3, 5, 3, 2)
    choice = choose("auto", device)
    expected = list(make_loader(choice, a, b, plan, device, DataConfig(), print).batches(0, 9))
    found = list(make_loader(choice, a, b, plan, device, DataConfig(cache=cache), print).batches(0, 9))
    assert all(same_batch(x, y) for x, y in zip(expected, found, strict=True))
