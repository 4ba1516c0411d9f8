"""Behaviour that all loaders share.

Batches do not depend on where a run starts or on the number of ranks, and files that break during a run are
reported or skipped.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.config import DataConfig
from fastcyclegan.data.background import never
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.loader import Job, Loader, Source, neighbours
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError
from tests.conftest import both, same_batch, source, unpaired, write_images

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
        choose(loader, CPU, threads), both(a, b), Plan(11, 5, 3, config.batch_size), CPU, config, log
    )


@LOADERS
def test_batches_do_not_depend_on_the_start(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """Batches are the same after a start in the middle of an epoch, of a block, or of a partial batch."""
    whole = list(make(tmp_path, loader, threads, cache, batch_size=2).batches(0, 40))
    for start in (1, 7, 33, 39):
        actual = list(make(tmp_path, loader, threads, cache, batch_size=2).batches(start, 40))
        assert all(same_batch(x, y) for x, y in zip(whole[start:], actual, strict=True))


@LOADERS
def test_stopping_reaches_the_loader(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    a, b = unpaired(tmp_path)
    choice, config = choose(loader, CPU, threads), DataConfig(cache=cache)
    asked: list[int] = []

    def stopping() -> bool:
        asked.append(1)
        return False

    made = make_loader(choice, both(a, b), Plan(11, 5, 3), CPU, config, print, stopping=stopping)
    assert made.stopping is stopping
    assert make(tmp_path, loader, threads, cache).stopping is never
    # A cached loader waits only where the cache is filled, and the others where they yield batches.
    assert bool(asked) == (cache == "ram")


@LOADERS
def test_two_shards_make_exactly_one_epoch(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """If two ranks share five samples, each sample occurs once.

    In the third iteration, no sample remains for the second rank, which yields an empty batch.
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
@pytest.mark.parametrize("failure", ["broken", "vanished", "pipe"])
def test_names_a_file_that_breaks_during_a_run(
    tmp_path: Path, loader: str, threads: int, cache: str, failure: str
) -> None:
    a, b = unpaired(tmp_path)
    path = b.paths[1]
    path.write_bytes(b"broken") if failure == "broken" else path.unlink()
    if failure == "pipe":
        os.mkfifo(path)  # reading the pipe would block forever
    config = DataConfig(load_size=24, crop_size=16, cache=cache)
    reason = {
        "broken": "not an image in one of the supported formats",
        "vanished": "no such file",
        "pipe": "not a regular file",
    }[failure]
    loader_under_test = make_loader(
        choose(loader, CPU, threads), both(a, b), Plan(11, 5, 3), CPU, config, print
    )
    with pytest.raises(
        UserError,
        match=rf"^bad image \S*/B/001.png: {reason}; pass --skip_bad_images to skip such images$",
    ):
        list(loader_under_test.batches(0, 30))


@LOADERS
def test_can_skip_a_file_that_breaks(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """With skip_bad_images, the next image replaces one that breaks, and the file is logged once.

    The samples' numbers, crops and random numbers stay the same.
    """
    a, b = unpaired(tmp_path)
    whole = list(FolderLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 30))
    b.paths[1].unlink()
    config, logged = DataConfig(load_size=24, crop_size=16, cache=cache, skip_bad_images=True), []
    actual = list(
        make_loader(
            choose(loader, CPU, threads), both(a, b), Plan(11, 5, 3), CPU, config, logged.append
        ).batches(0, 30)
    )
    assert len(actual) == 30
    for expected, batch in zip(whole, actual, strict=True):
        replaced = expected.paths_B == [str(b.paths[1])]
        assert batch.paths_B == ([str(b.paths[2])] if replaced else expected.paths_B)
        assert (batch.samples[0].view_B, batch.samples[0].draw_A) == (
            expected.samples[0].view_B,
            expected.samples[0].draw_A,
        )
        assert (batch.A - expected.A).abs().max() <= 4 / 127.5
    skipped = [line for line in logged if line.startswith("skipped")]
    assert skipped == [f"skipped {b.paths[1]}: no such file; the next image takes its place"] * len(skipped)
    assert len(skipped) == 1


@LOADERS
def test_reports_that_no_image_can_be_read(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    a, b = unpaired(tmp_path)
    for path in b.paths:
        path.unlink()
    config = DataConfig(load_size=24, crop_size=16, cache=cache, skip_bad_images=True)
    with pytest.raises(
        UserError, match=r"none of the 3 images can be read any more; the first error: .*no such file"
    ):
        list(
            make_loader(choose(loader, CPU, threads), both(a, b), Plan(11, 5, 3), CPU, config, print).batches(
                0, 30
            )
        )


def whole_images(root: Path) -> tuple[Source, Source]:
    """Write 5 images of domain A and 3 of B, which are not resized. Each domain has its own size."""
    a, b = write_images(root / "A", 5, (24, 16), seed=1), write_images(root / "B", 3, (20, 32), seed=2)
    return source(a, Fit("none"), batch_size=2), source(b, Fit("none"), batch_size=2)


@LOADERS
def test_batches_of_whole_images(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    a, b = whole_images(tmp_path)
    config, plan = DataConfig(preprocess="none", cache=cache, batch_size=2), Plan(11, 5, 3, 2)
    batches = list(
        make_loader(choose(loader, CPU, threads), both(a, b), plan, CPU, config, print).batches(0, 6)
    )
    assert [batch.A.shape for batch in batches[:3]] == [(2, 3, 16, 24), (2, 3, 16, 24), (1, 3, 16, 24)]
    assert [batch.B.shape for batch in batches[:3]] == [(2, 3, 32, 20), (2, 3, 32, 20), (1, 3, 32, 20)]
    for batch in batches:
        for images, paths, samples in (
            (batch.A, batch.paths_A, [s.view_A for s in batch.samples]),
            (batch.B, batch.paths_B, [s.view_B for s in batch.samples]),
        ):
            for image, path, view in zip(images, paths, samples, strict=True):
                pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
                expected = pixels.flip(2) if view.flip else pixels
                assert torch.equal(((image + 1) * 127.5).round(), expected.float())
    of_second = make_loader(choose(loader, CPU, threads), both(a, b), plan.shard(1, 2), CPU, config, print)
    empty = next(of_second.batches(1, 2))
    assert (empty.A.shape, empty.B.shape) == ((0, 3, 16, 24), (0, 3, 32, 20))


@LOADERS
def test_a_file_that_gets_another_size_is_a_bad_image(
    tmp_path: Path, loader: str, threads: int, cache: str
) -> None:
    a, b = whole_images(tmp_path)
    Image.new("RGB", (24, 32)).save(b.paths[1])
    config, plan = DataConfig(preprocess="none", cache=cache, batch_size=2), Plan(11, 5, 3, 2)
    with pytest.raises(
        UserError,
        match=r"^bad image \S*/B/001.png: --preprocess none makes it 24x32 now, but all images of a batch"
        r" must be 20x32; pass --skip_bad_images to skip such images$",
    ):
        list(make_loader(choose(loader, CPU, threads), both(a, b), plan, CPU, config, print).batches(0, 9))
    config, logged = replace(config, skip_bad_images=True), []
    made = make_loader(choose(loader, CPU, threads), both(a, b), plan, CPU, config, logged.append)
    assert {path for batch in made.batches(0, 9) for path in batch.paths_B} == {
        str(b.paths[0]),
        str(b.paths[2]),
    }
    assert sum("001.png: --preprocess none makes it 24x32 now" in line for line in logged) == 1


@pytest.mark.parametrize(("loader", "threads"), [("folder", 0), ("dali", 2)])
def test_reads_the_new_content_of_a_replaced_file(tmp_path: Path, loader: str, threads: int) -> None:
    """A replaced file is read correctly even if the image size differs from the one found by the check."""
    a, b = unpaired(tmp_path)
    for path in a.paths:
        Image.fromarray(np.full((40, 50, 3), 200, dtype=np.uint8)).save(path)
    config = DataConfig(load_size=24, crop_size=16)
    batch = next(
        make_loader(choose(loader, CPU, threads), both(a, b), Plan(11, 5, 3), CPU, config, print).batches(
            0, 4
        )
    )
    assert ((batch.A + 1) * 127.5).round().unique().tolist() == [200]


def test_a_batch_has_the_images_of_its_domains() -> None:
    """Single images have a domain A alone."""
    one, other = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    samples = [Plan(0, 3, 3).sample(1, 0)]
    batch = Batch.of(one, other, ["a"], ["b"], samples)
    assert (batch.A is one, batch.B is other, batch.paths_A, batch.paths_B) == (True, True, ["a"], ["b"])
    moved = batch.with_images(lambda images: images + 1)
    assert torch.equal(moved.A, one + 1)
    assert torch.equal(moved.B, other + 1)
    assert (moved.paths, moved.samples) == (batch.paths, samples)
    single = Batch({"A": one}, {"A": ["a"]}, samples).with_images(torch.neg)
    assert list(single.images) == ["A"]


def test_jobs_of_halves_of_one_file_are_neighbours() -> None:
    """Other jobs are alone, and are yielded before the next one is looked at."""
    paths = [Path("1"), Path("2")]
    left, right = [Job(path, half="left") for path in paths], [Job(path, half="right") for path in paths]
    whole = [Job(path) for path in paths]
    jobs = [
        left[0],
        right[0],
        right[1],
        left[0],
        whole[0],
        whole[0],
        left[1],
        whole[1],
        left[1],
        right[1],
        left[0],
    ]
    assert list(neighbours(jobs)) == [
        (left[0], right[0]),
        (right[1],),
        (left[0],),
        (whole[0],),
        (whole[0],),
        (left[1],),
        (whole[1],),
        (left[1], right[1]),
        (left[0],),
    ]
    taken = iter(whole)
    assert next(neighbours(taken)) == (whole[0],)
    assert next(taken) is whole[1]
