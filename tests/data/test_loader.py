"""What loaders share: the same batches from any start and in shards, and files that break under way, in every
loader.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.config import DataConfig
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.loader import Loader
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError
from tests.conftest import same_batch, unpaired

CPU = torch.device("cpu")
LOADERS = pytest.mark.parametrize(
    ("loader", "threads", "cache"),
    [
        ("folder", 0, "none"),
        ("folder", 2, "none"),
        ("dali", 2, "none"),
        ("dali", 1, "ram"),
        ("folder", 1, "ram"),
    ],
)


def make(
    root: Path, loader: str, threads: int, cache: str, logged: list[str] | None = None, **options: Any
) -> Loader:
    a, b = unpaired(root)
    config = DataConfig(load_size=24, crop_size=16, cache=cache, **options)
    log = [].append if logged is None else logged.append
    return make_loader(
        choose(loader, CPU, threads), a, b, Plan(11, 5, 3, config.batch_size), CPU, config, log
    )


@LOADERS
def test_every_start_gives_the_same_batches(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """In the middle of an epoch, of a block, of a partial batch."""
    whole = list(make(tmp_path, loader, threads, cache, batch_size=2).batches(0, 40))
    for start in (1, 7, 33, 39):
        found = list(make(tmp_path, loader, threads, cache, batch_size=2).batches(start, 40))
        assert all(same_batch(x, y) for x, y in zip(whole[start:], found, strict=True))


@LOADERS
def test_two_shards_make_exactly_one_epoch(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """Five samples over two ranks: in the third iteration the second rank has none, and says so with an empty
    batch.
    """
    parts = []
    for rank in range(2):
        of_rank = make(tmp_path, loader, threads, cache)
        of_rank.plan = of_rank.plan.shard(rank, 2)
        parts.append(list(of_rank.batches(0, 3)))
    assert [[len(batch.samples) for batch in part] for part in parts] == [[1, 1, 1], [1, 1, 0]]
    assert parts[1][2].A.shape == (0, 3, 16, 16)
    alone = list(make(tmp_path, loader, threads, cache).batches(0, 5))
    assert all(same_batch(alone[i], parts[i % 2][i // 2]) for i in range(5))


@LOADERS
@pytest.mark.parametrize("way", ["broken", "vanished", "pipe"])
def test_a_file_that_breaks_under_way_is_named(
    tmp_path: Path, loader: str, threads: int, cache: str, way: str
) -> None:
    a, b = unpaired(tmp_path)
    path = b.paths[1]
    path.write_bytes(b"broken") if way == "broken" else path.unlink()
    if way == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    config = DataConfig(load_size=24, crop_size=16, cache=cache)
    reason = {
        "broken": "not an image that Pillow can read",
        "vanished": "no such file",
        "pipe": "not a regular file",
    }[way]
    found = make_loader(choose(loader, CPU, threads), a, b, Plan(11, 5, 3), CPU, config, print)
    with pytest.raises(
        UserError, match=rf"^bad image \S*/B/001.png: {reason}; --skip_bad_images leaves such images out$"
    ):
        list(found.batches(0, 30))


@LOADERS
def test_a_file_that_breaks_can_be_left_out(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """The next image takes its place, the samples' numbers, crops and draws stay; it is said once."""
    a, b = unpaired(tmp_path)
    whole = list(FolderLoader(a, b, Plan(11, 5, 3), CPU).batches(0, 30))
    b.paths[1].unlink()
    config, logged = DataConfig(load_size=24, crop_size=16, cache=cache, skip_bad_images=True), []
    found = list(
        make_loader(choose(loader, CPU, threads), a, b, Plan(11, 5, 3), CPU, config, logged.append).batches(
            0, 30
        )
    )
    assert len(found) == 30
    for expected, batch in zip(whole, found, strict=True):
        replaced = expected.paths_B == [str(b.paths[1])]
        assert batch.paths_B == ([str(b.paths[2])] if replaced else expected.paths_B)
        assert (batch.samples[0].view_B, batch.samples[0].draw_A) == (
            expected.samples[0].view_B,
            expected.samples[0].draw_A,
        )
        assert (batch.A - expected.A).abs().max() <= 4 / 127.5
    left_out = [line for line in logged if line.startswith("left out")]
    assert left_out == [f"left out {b.paths[1]}: no such file; the next image takes its place"] * len(
        left_out
    )
    assert len(left_out) == 1


def FolderOf(a: Any, b: Any) -> Any:
    config = DataConfig(load_size=24, crop_size=16)
    return make_loader(choose("folder", CPU, 0), a, b, Plan(11, 5, 3), CPU, config, print).batches(0, 30)


@LOADERS
def test_nothing_left_to_read(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    a, b = unpaired(tmp_path)
    for path in b.paths:
        path.unlink()
    config = DataConfig(load_size=24, crop_size=16, cache=cache, skip_bad_images=True)
    with pytest.raises(
        UserError, match=r"none of the 3 images can be read any more; the first: .*no such file"
    ):
        list(
            make_loader(choose(loader, CPU, threads), a, b, Plan(11, 5, 3), CPU, config, print).batches(0, 30)
        )


@pytest.mark.parametrize(("loader", "threads"), [("folder", 0), ("dali", 2)])
def test_a_file_that_was_replaced_is_read_as_it_is_now(tmp_path: Path, loader: str, threads: int) -> None:
    """Even with another size than it was checked to have."""
    a, b = unpaired(tmp_path)
    for path in a.paths:
        Image.fromarray(np.full((40, 50, 3), 200, dtype=np.uint8)).save(path)
    config = DataConfig(load_size=24, crop_size=16)
    batch = next(
        make_loader(choose(loader, CPU, threads), a, b, Plan(11, 5, 3), CPU, config, print).batches(0, 4)
    )
    assert ((batch.A + 1) * 127.5).round().unique().tolist() == [200]
