"""Which images are held out to evaluate with, in which size, and which of them are pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.scan import Images, find_images
from fastcyclegan.errors import UserError
from fastcyclegan.metrics.held_out import evaluation_fit, find_held_out, held_out, partners_of, resized_to
from fastcyclegan.settings.data import DataConfig
from tests.conftest import write_images

NEEDED = ImageRequirements()
BOTH = ("unaligned", "aligned")


def found(data: DataConfig, allowed: Any = BOTH) -> tuple[Images, list[str]]:
    lines: list[str] = []
    return find_held_out(data, 0, NEEDED, allowed, lines.append), lines


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


# --- The size of images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({"preprocess": "resize_and_crop", "load_size": 30, "crop_size": 24}, (50, 40), (24, 24)),
        ({"preprocess": "resize_and_crop", "load_size": 30, "crop_size": (16, 24)}, (50, 40), (24, 16)),
        ({"preprocess": "crop", "crop_size": 16}, (50, 41), (48, 40)),
        ({"preprocess": "none"}, (51, 41), (52, 40)),
        ({"preprocess": "scale_width", "load_size": 40, "crop_size": 16}, (80, 60), (40, 32)),
        ({"preprocess": "scale_width_and_crop", "load_size": 42, "crop_size": 16}, (80, 60), (40, 32)),
    ],
)
def test_images_are_whole_and_in_the_size_of_training(
    settings: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Other modes than the default round to multiples of what the networks need, here 4."""
    fit = evaluation_fit(DataConfig(**settings), 3, 4)
    assert fit.crop is None
    assert fit.resized(size) == expected


def test_settings_without_an_effect_do_not_change_the_fit() -> None:
    one, two = (DataConfig(load_size=load, crop_size=16) for load in (20, 30))
    assert evaluation_fit(one, 3, 4) == evaluation_fit(two, 3, 32) == resized_to((16, 16), Fit(channels=3))
    one, two = (DataConfig(preprocess="none", crop_size=crop) for crop in (16, 32))
    assert evaluation_fit(one, 1, 4) == evaluation_fit(two, 1, 4)
    assert evaluation_fit(one, 1, 4) != evaluation_fit(one, 3, 4)
    assert evaluation_fit(one, 1, 4) != evaluation_fit(one, 1, 32)
    wide = Fit("scale_width", 40, 16, 1, any_size=True)
    assert resized_to(None, wide) == Fit(channels=1, any_size=True)


# --- The folders --------------------------------------------------------------------------------------------


def test_the_test_folders_are_enough(tmp_path: Path) -> None:
    for separator in ("", "/"):
        root = tmp_path / f"data{len(separator)}"
        for seed, side in enumerate("AB"):
            write_images(root / f"test{separator}{side}", 2 + seed, seed=seed)
        for direction in ("AtoB", "BtoA"):
            images, lines = found(DataConfig(dataroot=root, direction=direction))
            sides = (images.test_A, images.test_B) if direction == "AtoB" else (images.test_B, images.test_A)
            assert names(sides[0], root) == [f"test{separator}A/00{n}.png" for n in range(2)]
            assert names(sides[1], root) == [f"test{separator}B/00{n}.png" for n in range(3)]
            assert (images.layout, images.halves, lines) == ("unaligned", False, [])


def test_they_are_those_that_training_holds_out(dataset: Path) -> None:
    """Also without test folders, where they depend on the seed."""
    for data in (
        DataConfig(dataroot=dataset, load_size=20, crop_size=16),
        DataConfig(
            data_A=dataset / "trainA", data_B=dataset / "trainB", holdout=0.4, crop_size=16, load_size=16
        ),
    ):
        images, _ = found(data)
        trained = find_images(data, 0, print)
        assert (images.test_A, images.test_B) == (trained.test_A, trained.test_B)
        assert images.test_A


def test_pairs_side_by_side(tmp_path: Path) -> None:
    write_images(tmp_path / "test", 3, size=(40, 20))
    data = DataConfig(dataroot=tmp_path, dataset_mode="aligned")
    images, _ = found(data, ("aligned",))
    assert (len(images.test_A), images.layout, images.halves) == (3, "aligned", True)
    write_images(tmp_path / "val", 2, size=(40, 20))
    assert len(found(data)[0].test_A) == 2  # first, as in training
    # Also for a network that was trained on two domains, if its recipe allows pairs.
    images, _ = found(DataConfig(dataroot=tmp_path))
    assert (len(images.test_A), images.layout) == (2, "aligned")
    with pytest.raises(UserError, match="contains no held-out images of two domains"):
        found(DataConfig(dataroot=tmp_path), ("unaligned",))


def test_folders_of_domains_are_no_pairs_side_by_side(tmp_path: Path) -> None:
    write_images(tmp_path / "test" / "A", 3)
    with pytest.raises(UserError, match="contains no held-out images of two domains"):
        found(DataConfig(dataroot=tmp_path))


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_pairs_in_two_folders(tmp_path: Path, direction: Any) -> None:
    """Those without a partner are left out. All of B are in a subfolder."""
    write_images(tmp_path / "testA" / "x", 3)
    write_images(tmp_path / "testB" / "x", 2)
    write_images(tmp_path / "testA", 1)
    data = DataConfig(dataroot=tmp_path, dataset_mode="aligned", direction=direction)
    images, lines = found(data)
    assert lines == [f"{tmp_path}: left out 2 held-out images without a partner"]
    sides = (images.test_A, images.test_B) if direction == "AtoB" else (images.test_B, images.test_A)
    assert names(sides[0], tmp_path / "testA") == ["x/000.png", "x/001.png"]
    assert names(sides[1], tmp_path / "testB") == ["x/000.png", "x/001.png"]


def test_what_cannot_be_found(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        found(DataConfig(dataroot=tmp_path / "nowhere"))
    with pytest.raises(UserError, match="single images have no others"):
        found(DataConfig(data=dataset / "trainA", dataset_mode="single"))
    for file in (dataset / "testB").iterdir():
        file.unlink()
    images, _ = found(DataConfig(dataroot=dataset, load_size=20, crop_size=16))
    with pytest.raises(UserError, match="there are no held-out images of domain B to evaluate with"):
        held_out(images, DataConfig(), NEEDED, "AtoB")


def test_the_largest_number_of_images_is_that_of_training(dataset: Path) -> None:
    images, _ = found(DataConfig(dataroot=dataset, max_dataset_size=1))
    assert (len(images.test_A), len(images.test_B)) == (1, 1)


# --- Pairs --------------------------------------------------------------------------------------------------


def test_both_directions_of_pairs_side_by_side(tmp_path: Path) -> None:
    write_images(tmp_path / "test", 2, size=(40, 20))
    for direction, first in (("AtoB", "left"), ("BtoA", "right")):
        data = DataConfig(
            dataroot=tmp_path, dataset_mode="aligned", direction=direction, load_size=16, crop_size=16
        )
        images, _ = found(data)
        second = {"left": "right", "right": "left"}[first]
        there, back = (held_out(images, data, NEEDED, of_model) for of_model in ("AtoB", "BtoA"))
        assert (there.sources.half, there.reals.half, there.partners) == (first, second, [0, 1])
        assert (back.sources.half, back.reals.half, back.partners) == (second, first, [0, 1])
        assert there.has_pairs


def test_domains_have_their_channels(dataset: Path) -> None:
    images, _ = found(DataConfig(dataroot=dataset))
    needed = ImageRequirements(channels=(3, 1))
    for of_model, channels in (("AtoB", (3, 1)), ("BtoA", (1, 3))):
        held = held_out(images, DataConfig(), needed, of_model)
        assert (held.sources.fit.channels, held.reals.fit.channels) == channels


def test_equal_names_in_two_domains_are_pairs(dataset: Path) -> None:
    (dataset / "testB" / "001.png").rename(dataset / "testB" / "002.png")
    images, _ = found(DataConfig(dataroot=dataset))
    held = held_out(images, DataConfig(), NEEDED, "BtoA")
    assert (held.partners, held.has_pairs, held.ambiguous) == ([0, None], True, "")
    (dataset / "testB" / "000.png").rename(dataset / "testB" / "003.png")
    held = held_out(found(DataConfig(dataroot=dataset))[0], DataConfig(), NEEDED, "AtoB")
    assert (held.partners, held.has_pairs) == ([None, None], False)


def paired(sources: str, reals: str) -> tuple[list[int | None], str]:
    return partners_of(
        *(Path("fake"), [Path("fake") / name for name in sources.split()]),
        *(Path("real"), [Path("real") / name for name in reals.split()]),
    )


@pytest.mark.parametrize(
    ("sources", "reals", "expected"),
    [
        ("a.png b.png", "b.jpg c.png", [None, 0]),
        ("x/a.png", "a.png x/a.png", [1]),  # not by the innermost folder of all images
        ("x/a.png", "y/a.png", [None]),
        ("a_A.png b_B.png", "b.png a.png", [1, 0]),
        ("a_B.png", "a_A.png", [0]),
        ("a_A.png", "a_B.png", [0]),
        ("a_A.png a.png", "a_B.png a.png", [0, 1]),  # equal names first
        ("a_A.png a_B.png", "a.png", [0, None]),  # one partner each
        ("a.b.png", "a.b.png a.png", [0]),
    ],
)
def test_partners_have_the_same_name(sources: str, reals: str, expected: list[int | None]) -> None:
    assert paired(sources, reals) == (expected, "")


@pytest.mark.parametrize(
    ("sources", "reals"), [("a.png a.jpg", "a.png"), ("a.png", "a.jpg a.png"), ("a_B.png a_B.jpg", "a.png")]
)
def test_two_candidates_leave_all_without_a_partner(sources: str, reals: str) -> None:
    partners, text = paired(sources, reals)
    assert partners == [None] * len(sources.split())
    assert "two images could be its partner" in text
    assert paired("b.png a.jpg a.png", "b.png c.png") == ([0, None, None], "")  # if they do not matter
