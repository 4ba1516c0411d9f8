"""Sources of images, and reading the images of a sample from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastcyclegan.config import DataConfig
from fastcyclegan.data.fit import Fit, ImageRequirements, load_pixels
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.data.scan import find_images
from fastcyclegan.data.source import have_one_fit, next_good_images, next_good_pair, sources_of
from fastcyclegan.errors import StoppedError, UserError
from tests.conftest import both, source, unpaired, write_images

REQUIRED = ImageRequirements(size_multiple=8, channels=(1, 3))


def test_sources_of_two_domains(dataset: Path) -> None:
    data = DataConfig(dataroot=dataset, load_size=24, crop_size=16)
    images = find_images(data, 0, print)
    training, shown = (sources_of(images, data, REQUIRED, held_out) for held_out in (False, True))
    assert [list(sources) for sources in (training, shown)] == [["A", "B"]] * 2
    assert [training[side].paths for side in "AB"] == [images.train_A, images.train_B]
    assert [shown[side].paths for side in "AB"] == [images.test_A, images.test_B]
    for side, channels in (("A", 1), ("B", 3)):
        assert training[side].fit == shown[side].fit == Fit.of(data, channels, 8)
        assert (training[side].size, shown[side].size, training[side].half) == ((16, 16), None, None)
    assert not have_one_fit(training)


def test_training_images_are_shown_if_none_are_held_out(dataset: Path) -> None:
    for path in (dataset / "testB").iterdir():
        path.unlink()
    data = DataConfig(dataroot=dataset)
    images = find_images(data, 0, print)
    shown = sources_of(images, data, REQUIRED, held_out=True)
    assert [source.paths for source in shown.values()] == [images.test_A, images.train_B]


def test_batches_need_images_of_one_size(dataset: Path) -> None:
    """Of the halves of files, and only of training images."""
    write_images(dataset / "train", 2, (40, 24))
    data = DataConfig(dataroot=dataset, dataset_mode="aligned", preprocess="none", batch_size=2)
    images = find_images(data, 0, print)
    assert [source.size for source in sources_of(images, data, REQUIRED).values()] == [(16, 24)] * 2
    write_images(dataset / "train" / "other", 1, (80, 24))
    images = find_images(data, 0, print)
    sources_of(images, data, REQUIRED, held_out=True)
    with pytest.raises(UserError, match=r"train/000.png is 16x24 and \S*other/000.png is 40x24"):
        sources_of(images, data, REQUIRED)


def test_a_source_of_single_images(dataset: Path) -> None:
    data = DataConfig(data=dataset / "trainA", dataset_mode="single", holdout=0)
    sources = sources_of(find_images(data, 0, print), data, ImageRequirements(channels=(3,)))
    assert {side: len(source.paths) for side, source in sources.items()} == {"A": 5}


def test_the_largest_sides_of_halves_and_of_others(dataset: Path) -> None:
    (wide,) = write_images(dataset / "train", 1, (80, 24))
    (high,) = write_images(dataset / "val", 1, (40, 48))
    data = DataConfig(dataroot=dataset, dataset_mode="aligned", preprocess="none")
    source = sources_of(find_images(data, 0, print), data, REQUIRED)["B"]
    assert source.paths == [wide]
    assert source.largest_sides([]) == (40, 24)
    assert source.largest_sides([high]) == (40, 48)


def test_images_that_do_not_belong_together_move_on_alone(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    sample = Plan(0, 5, 3).sample(1, 0).with_indices({"A": 4, "B": 2})
    Path(b.paths[2]).unlink()
    views, moved, bad = next_good_images(both(a, b), sample)
    assert moved == sample.with_indices({"A": 4, "B": 0})
    assert [error.path for error in bad] == [str(b.paths[2])]
    assert np.array_equal(views["B"], b.view(0, sample.view_B))


def test_a_pair_moves_on_together_and_can_be_stopped(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "A", 3), write_images(tmp_path / "B", 3, seed=1)
    a, b = (source(side, Fit("crop", 0, 16)) for side in paths)
    sample = Plan(0, 3, 3, paired=True).sample(1, 0).with_indices({"A": 2})
    Path(b.paths[2]).unlink()
    views, moved, bad = next_good_pair(both(a, b), 2, sample)
    assert (moved.index_A, moved.index_B, len(bad)) == (0, 0, 1)
    assert np.array_equal(views["A"], a.view(0, sample.view_A))
    with pytest.raises(StoppedError):
        next_good_pair(both(a, b), 2, sample, lambda: True)


def test_a_lack_of_memory_is_no_bad_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise MemoryError

    a = source(write_images(tmp_path, 2), Fit("square", 16))
    monkeypatch.setattr("PIL.Image.Image.resize", fails)
    with pytest.raises(UserError, match="cannot be resized to 16x16 pixels: out of memory"):
        next_good_pair({"A": a}, 0, Plan(0, 2, 2, paired=True).sample(1, 0))
    assert load_pixels(a.paths[0], Fit()).shape == (20, 24, 3)
