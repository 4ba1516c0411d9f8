"""Load pairs: halves of one file, and images of two folders, in every mode and with every loader.

What is loaded is compared with a plain computation by Pillow. Both images of a pair get the same crop and
flip, a pair that cannot be read is replaced as a whole, and a file that holds a pair is decoded once.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.config import FIXED_SIZE, DataConfig, Preprocess
from fastcyclegan.data import dali_pipeline, fit
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.data.dali_loader import DaliLoader
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.loader import Loader, sources_of
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.scan import find_images
from fastcyclegan.errors import UserError
from tests.conftest import same_batch, write_images
from tests.data.dali_files import MODES, levels
from tests.data.pair_files import (
    aligned_sources,
    expected_image,
    halves,
    joined,
    write_side_by_side,
    write_two_folders,
)
from tests.data.test_dali_blocks import resident
from tests.data.test_loader import LOADERS

CPU = torch.device("cpu")
WRITERS = {"halves": write_side_by_side, "two folders": write_two_folders}
LAYOUTS = pytest.mark.parametrize("layout", WRITERS)


def config_of(root: Path, mode: Preprocess = "crop", **options: Any) -> DataConfig:
    settings = {"load_size": 72, "crop_size": (52, 64), "dataset_mode": "aligned", **options}
    return DataConfig(dataroot=root, preprocess=mode, **settings)


def make(root: Path, loader: str, threads: int, data: DataConfig, log: Any = print) -> Loader:
    sources, plan = aligned_sources(root, data)
    return make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, log)


def assert_as_computed(loader: Loader, stop: int, mean: float, largest: float) -> None:
    """Assert that batches are what Pillow alone computes, within these differences in levels."""
    for batch in loader.batches(0, stop):
        for row, sample in enumerate(batch.samples):
            assert (sample.index_A, sample.view_A) == (sample.index_B, sample.view_B)
            for side, source in loader.sources.items():
                wanted = expected_image(source, batch, side, row) / 127.5 - 1
                found = levels(batch.images[side][row], wanted)
                assert found[0] <= mean
                assert found[1] <= largest


CASES: list[tuple[Preprocess, tuple[int, int]]] = [(mode, (3, 3)) for mode in MODES]
# A reader per domain, with and without a resize.
CASES += [("resize_and_crop", (1, 3)), ("none", (3, 1))]


@LAYOUTS
@pytest.mark.parametrize(("mode", "channels"), CASES)
def test_every_loader_yields_what_pillow_computes(
    tmp_path: Path, mode: Preprocess, channels: tuple[int, int], layout: str
) -> None:
    """Pillow's loader does exactly, and DALI's within what a resize costs (see test_dali_loader.py).

    A crop at another place, or a missing flip, would change images by tens of levels. With a cache, batches
    are exactly those without.
    """
    data = config_of(WRITERS[layout](tmp_path), mode, batch_size=3 if mode in FIXED_SIZE else 1)
    sources, plan = aligned_sources(tmp_path, data, channels)
    stop = plan.iterations_per_epoch + 1
    # A level of float32 in [-1, 1] is rounded by less than 1e-4.
    for kind, tolerance in (("folder", 1e-4), ("dali", 1e-4 if mode == "crop" else 0.25)):
        loader = make_loader(choose(kind, CPU, 0), sources, plan, CPU, data, print)
        assert_as_computed(loader, stop, tolerance, 1e-4 if tolerance == 1e-4 else 256)
        cached = make_loader(choose(kind, CPU, 1), sources, plan, CPU, replace(data, cache="ram"), print)
        for x, y in zip(loader.batches(0, stop), cached.batches(0, stop), strict=True):
            assert same_batch(x, y)


@LAYOUTS
@pytest.mark.parametrize("mode", MODES)
def test_the_graph_for_gpus_cuts_crops_and_flips_as_pillow_does(
    tmp_path: Path, mode: Preprocess, layout: str
) -> None:
    """DALI repeats pixels at the border, so its resize is further off (see test_dali_loader.py)."""
    data = config_of(WRITERS[layout](tmp_path), mode)
    sources, plan = aligned_sources(tmp_path, data)
    ours = DaliLoader(sources, plan, CPU, threads=1, whole=True)
    assert_as_computed(ours, len(plan), 1e-4 if mode == "crop" else 0.5, 1e-4 if mode == "crop" else 256)


@LAYOUTS
@LOADERS
def test_identical_images_stay_identical(
    tmp_path: Path, loader: str, threads: int, cache: str, layout: str
) -> None:
    """The crop and the flip of both are the same to the pixel, with every kind of loader and reader."""
    data = config_of(tmp_path, "resize_and_crop", cache=cache, batch_size=2)
    folders = [tmp_path / name for name in (["train"] if layout == "halves" else ["trainA", "trainB"])]
    for folder in folders:
        folder.mkdir()
        for n, size in enumerate([(64, 64), (65, 131), (300, 70)]):
            image, _ = halves(n, size)
            if layout == "halves":
                image = joined(image, image)
            image.save(folder / f"{n}.png")
            image.save(folder / f"{n}w.webp", lossless=True)
    views = set()
    for batch in make(tmp_path, loader, threads, data).batches(0, 9):
        assert torch.equal(batch.A, batch.B)
        views |= {sample.view_A for sample in batch.samples}
    assert {view.flip for view in views} == {False, True}
    assert len({view.x for view in views}) > 9


@LAYOUTS
@LOADERS
def test_direction_swaps_a_and_b(tmp_path: Path, loader: str, threads: int, cache: str, layout: str) -> None:
    data = config_of(WRITERS[layout](tmp_path), "resize_and_crop", cache=cache)
    there = make(tmp_path, loader, threads, data)
    back = make(tmp_path, loader, threads, replace(data, direction="BtoA"))
    for x, y in zip(there.batches(0, 20), back.batches(0, 20), strict=True):
        assert (x.paths_A, x.paths_B, x.samples) == (y.paths_B, y.paths_A, y.samples)
        assert torch.equal(x.A, y.B)
        assert torch.equal(x.B, y.A)
        assert not torch.equal(x.A, x.B)


@LOADERS
@pytest.mark.parametrize("broken", [["A"], ["B"], ["A", "B"]], ids=" and ".join)
def test_the_next_pair_takes_the_place_of_a_broken_one(
    tmp_path: Path, loader: str, threads: int, cache: str, broken: list[str]
) -> None:
    """Both domains move on, past a pair of which the other image is broken. Crops and flips stay the same."""
    data = config_of(write_two_folders(tmp_path), "resize_and_crop", cache=cache)
    sources, plan = aligned_sources(tmp_path, data)
    whole = list(FolderLoader(sources, plan, CPU).batches(0, 20))
    gone = [(broken[0], 1), (broken[-1], 2)]
    for side, index in gone:
        Path(sources[side].paths[index]).unlink()
    choice = choose(loader, CPU, threads)
    made = make_loader(choice, sources, plan, CPU, data, print)
    with pytest.raises(UserError, match=r"^bad image \S+: no such file; pass --skip_bad_images to skip such"):
        list(made.batches(0, 20))
    data, logged = replace(data, skip_bad_images=True), list[str]()
    actual = list(make_loader(choice, sources, plan, CPU, data, logged.append).batches(0, 20))
    for expected, batch in zip(whole, actual, strict=True):
        index = expected.samples[0].index_A
        index = 3 if index in (1, 2) else index
        assert batch.samples == [replace(expected.samples[0], index_A=index, index_B=index)]
        assert batch.paths == {side: [str(source.paths[index])] for side, source in sources.items()}
    skipped = [line for line in logged if line.startswith("skipped")]
    assert sorted(skipped) == sorted(
        f"skipped {sources[side].paths[index]}: no such file; the next pair takes its place"
        for side, index in gone
    )


@LOADERS
def test_halves_of_a_file_that_breaks_are_replaced(
    tmp_path: Path, loader: str, threads: int, cache: str
) -> None:
    """If the file disappears, or another one of an odd width takes its place."""
    data = config_of(write_side_by_side(tmp_path), cache=cache, skip_bad_images=True)
    sources, plan = aligned_sources(tmp_path, data)
    paths = sources["A"].paths
    paths[1].unlink()
    Image.new("RGB", (201, 80)).save(paths[2])
    logged: list[str] = []
    made = make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, logged.append)
    seen = Counter(path for batch in made.batches(0, len(plan)) for path in batch.paths_B)
    assert seen == {**dict.fromkeys(map(str, paths[3:]), 1), str(paths[0]): 1, str(paths[3]): 3}
    skipped = sorted(
        line.removesuffix("; the next pair takes its place") for line in logged if "skip" in line
    )
    assert [line.split(": ")[0] for line in skipped] == [f"skipped {path}" for path in paths[1:3]]
    assert "201x80 has an odd width" in skipped[1]


@LOADERS
def test_reports_that_no_pair_can_be_read(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    data = config_of(write_two_folders(tmp_path), cache=cache, skip_bad_images=True)
    sources, plan = aligned_sources(tmp_path, data)
    for n in range(len(plan)):
        Path(sources["AB"[n % 2]].paths[n]).unlink()
    with pytest.raises(UserError, match="none of the 6 pairs can be read any more; the first error: "):
        list(make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, print).batches(0, 20))


@LOADERS
def test_a_pair_of_two_sizes_is_bad(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """One file gets another size during the run, in a mode that does not crop."""
    data = config_of(write_two_folders(tmp_path), "none", cache=cache)
    sources, plan = aligned_sources(tmp_path, data)
    path = Path(sources["B"].paths[3])
    Image.new("RGB", (40, 24)).save(path)
    partner = sources["A"].paths[3]
    with pytest.raises(UserError) as error:
        list(make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, print).batches(0, 10))
    assert str(error.value).startswith(
        f"bad image {path}: --preprocess none makes it 40x24 now, but its partner {partner} is "
    )


@LOADERS
def test_single_images(tmp_path: Path, loader: str, threads: int, cache: str) -> None:
    """Batches contain only A. The samples are those of pairs, and broken files are replaced."""
    write_side_by_side(tmp_path)
    data = config_of(tmp_path, "resize_and_crop", cache=cache, batch_size=2, dataset_mode="single")
    sources, plan = aligned_sources(tmp_path, data, (3,))
    assert list(sources) == ["A"]
    made = make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, print)
    assert_as_computed(made, 20, 1e-4 if loader == "folder" else 0.25, 256)
    batch = next(made.batches(0, 1))
    assert batch.images.keys() == batch.paths.keys() == {"A"}
    assert batch.A.shape == (2, 3, 52, 64)
    made.plan = plan.shard(1, 2)
    last = list(made.batches(0, plan.shard(1, 2).iterations_per_epoch))[-1]
    assert last.images["A"].shape[0] == len(last.samples)
    sources["A"].paths[4].unlink()
    data, logged = replace(data, skip_bad_images=True), []
    made = make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, logged.append)
    assert sum(len(batch.samples) for batch in made.batches(0, plan.iterations_per_epoch)) == len(plan)
    assert [line for line in logged if "skipped" in line] == [
        f"skipped {sources['A'].paths[4]}: no such file; the next image takes its place"
    ]


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("kind", ["folder", "dali"])
@pytest.mark.parametrize("channels", [(3, 3), (1, 3)], ids=["colour", "gray to colour"])
def test_a_file_is_decoded_once_for_both_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cache: str, channels: tuple[int, int]
) -> None:
    """Unless they differ in their channels."""
    data = config_of(write_side_by_side(tmp_path), cache=cache)
    sources, plan = aligned_sources(tmp_path, data, channels)
    decoded: Counter[str] = Counter()
    open_image, launch = fit.open_image, dali_pipeline.DaliPipeline.launch

    def opened(path: Path, *options: Any) -> Any:
        decoded[str(path)] += 1
        return open_image(path, *options)

    def launched(self: Any, files: list[dali_pipeline.EncodedFile]) -> None:
        decoded.update(str(file.path) for file in files)
        launch(self, files)

    monkeypatch.setattr(fit, "open_image", opened)
    monkeypatch.setattr(dali_pipeline.DaliPipeline, "launch", launched)
    made = make_loader(choose(kind, CPU, 0), sources, plan, CPU, data, print)
    list(made.batches(0, len(plan)))
    times = 1 if channels == (3, 3) else 2
    assert decoded == dict.fromkeys(map(str, sources["A"].paths), times)


def test_held_out_pairs_are_read_whole(tmp_path: Path) -> None:
    """Sources of held-out images have no size that their images must have."""
    write_side_by_side(tmp_path, [(64, 64)])
    write_images(tmp_path / "val", 2, (40, 24))
    write_images(tmp_path / "val" / "other", 1, (80, 24))
    data, required = config_of(tmp_path, "none", batch_size=2, crop_size=8), ImageRequirements()
    images = find_images(data, 0, print, None, required)
    training, shown = (sources_of(images, data, required, held_out) for held_out in (False, True))
    assert [source.size for source in training.values()] == [(64, 64)] * 2
    assert [(source.size, source.half) for source in shown.values()] == [(None, "left"), (None, "right")]
    assert [len(source.paths) for source in shown.values()] == [3, 3]


@pytest.mark.slow
@LAYOUTS
def test_a_thousand_pairs_through_both_loaders(tmp_path: Path, layout: str) -> None:
    """Samples are equal, and the memory that is in use does not grow from one epoch to the next."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / name for name in (["train"] if layout == "halves" else ["trainA", "trainB"])]
    for folder in folders:
        folder.mkdir()
        for n in range(1000):
            width = 128 if layout == "halves" else 64
            Image.fromarray(rng.integers(0, 256, (64, width, 3), dtype=np.uint8)).save(folder / f"{n:04}.png")
    data = config_of(tmp_path, "crop", crop_size=48)
    sources, plan = aligned_sources(tmp_path, data)
    epochs = 8
    loaders = DaliLoader(sources, plan, CPU, threads=2), FolderLoader(sources, plan, CPU)
    seen, batches = [], (loader.batches(0, epochs * len(plan)) for loader in loaders)
    for count, (x, y) in enumerate(zip(*batches, strict=True), 1):
        assert same_batch(x, y)
        if count % len(plan) == 0:
            gc.collect()
            time.sleep(0.1)
            seen.append(resident())
    # The allocators need some epochs until they have all that they use. A loader that kept its pixels would
    # take 27 MiB more in every epoch.
    assert seen[-1] - seen[3] < 4 * len(plan) * 48 * 48 * 3 / 4, seen


@pytest.mark.gpu
@LAYOUTS
@pytest.mark.parametrize("cache", ["none", "ram", "gpu"])
@pytest.mark.parametrize("mode", MODES)
def test_pairs_on_a_gpu(tmp_path: Path, mode: Preprocess, cache: Any, layout: str) -> None:
    """Decoders may differ by what their standards allow (see test_dali_loader.py)."""
    data = config_of(WRITERS[layout](tmp_path), mode, cache=cache)
    sources, plan = aligned_sources(tmp_path, data)
    gpu = torch.device("cuda")
    ours = make_loader(choose("dali", gpu, 2), sources, plan, gpu, data, print)
    pillow = FolderLoader(sources, plan, CPU)
    for x, y in zip(ours.batches(0, len(plan)), pillow.batches(0, len(plan)), strict=True):
        assert (x.paths, x.samples) == (y.paths, y.samples)
        for side in "AB":
            assert levels(x.images[side].cpu(), y.images[side])[0] <= 0.7 * 1.5625 + 0.5
