"""The folders of each layout, and the messages about those of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastcyclegan.config import DataConfig, Layout
from fastcyclegan.data.folders import aligned_folders
from fastcyclegan.data.scan import find_images
from fastcyclegan.errors import UserError
from tests.conftest import write_images


def test_the_folders_of_pairs_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train: no such folder$"):
        aligned_folders(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such folder$"):
        aligned_folders(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train: contains no images \(looked for "):
        aligned_folders(tmp_path)
    write_images(tmp_path / "train" / "more", 1)
    assert aligned_folders(tmp_path) == {"train": tmp_path / "train"}
    for name in ("test", "val", "other"):
        (tmp_path / name).mkdir()
    folders = {name: tmp_path / name for name in ("train", "val", "test")}
    assert aligned_folders(tmp_path) == folders


def unaligned(root: Path) -> None:
    write_images(root / "trainA", 2)
    write_images(root / "trainB" / "other", 1)


def nested(root: Path) -> None:
    write_images(root / "train" / "A", 2)
    write_images(root / "train" / "B" / "other", 1)


def train(root: Path) -> None:
    write_images(root / "train", 2, size=(40, 20))


def flat(root: Path) -> None:
    write_images(root, 2)


def nothing(root: Path) -> None:
    (root / "train").mkdir()


EVERY: list[Layout] = ["unaligned", "aligned", "single"]
NEEDS = {
    "unaligned": "two domains in trainA and trainB, or train/A and train/B (--dataset_mode unaligned)",
    "aligned": (
        "pairs, side by side in the files of train or of the same names in trainA and trainB (--dataset_mode"
        " aligned)"
    ),
    "single": "single images in train (--dataset_mode single)",
}
# Writer, layout wanted, layouts allowed, what is found, and the ways out.
WRONG: list[tuple[Callable[[Path], None], Layout, list[Layout], str, str]] = [
    (
        unaligned,
        "aligned",
        ["aligned"],
        "contains trainA and trainB, two domains (unaligned) without a pair of images of the same name",
        "to use two other folders, with images of the same names, pass --data_A and --data_B",
    ),
    (
        unaligned,
        "single",
        EVERY,
        "contains trainA and trainB, two domains (unaligned)",
        "--dataset_mode unaligned trains on it; --data ROOT/trainA trains on the images of one domain",
    ),
    (
        nested,
        "single",
        ["single"],
        "contains train/A and train/B, two domains (unaligned)",
        "--data ROOT/train/A trains on the images of one domain",
    ),
    (
        train,
        "unaligned",
        EVERY,
        "contains train, which is not divided into two domains",
        "--dataset_mode aligned trains on it if its images are pairs side by side; --dataset_mode single"
        " trains on it as single images",
    ),
    (
        train,
        "unaligned",
        ["unaligned"],
        "contains train, which is not divided into two domains",
        "to use two other folders, pass --data_A and --data_B",
    ),
    (flat, "single", ["single"], "contains images and no folder train", "--data ROOT trains on it"),
    (flat, "unaligned", EVERY, "contains images and no folder train", "--data ROOT trains on it"),
    (
        flat,
        "aligned",
        ["aligned"],
        "contains images and no folder train",
        "to use two other folders, with images of the same names, pass --data_A and --data_B",
    ),
]


@pytest.mark.parametrize(("write", "wanted", "allowed", "found", "ways"), WRONG)
def test_a_folder_of_another_layout_is_described(
    tmp_path: Path,
    write: Callable[[Path], None],
    wanted: Layout,
    allowed: list[Layout],
    found: str,
    ways: str,
) -> None:
    """The message names the flags with which the recipe trains on the folder, or what the recipe needs."""
    write(tmp_path)
    with pytest.raises(UserError) as error:
        find_images(DataConfig(dataroot=tmp_path, dataset_mode=wanted), 0, print, allowed=allowed)
    ways = ways.replace("ROOT", str(tmp_path))
    assert str(error.value) == f"{tmp_path} {found}, but this run needs {NEEDS[wanted]}; {ways}"


@pytest.mark.parametrize("wanted", EVERY)
def test_a_folder_without_images_is_described(tmp_path: Path, wanted: Layout) -> None:
    config = DataConfig(dataroot=tmp_path, dataset_mode=wanted)
    with pytest.raises(UserError, match="neither trainA and trainB, nor train/A and train/B, nor train, but"):
        find_images(config, 0, print)
    nothing(tmp_path)
    with pytest.raises(UserError, match=r"contains no images|train, which is not divided into two domains"):
        find_images(config, 0, print)


def test_train_comes_before_the_folders_of_two_domains(tmp_path: Path) -> None:
    """As in the official layout of pairs."""
    unaligned(tmp_path)
    train(tmp_path)
    config = DataConfig(dataroot=tmp_path, dataset_mode="aligned")
    assert find_images(config, 0, print).halves
    assert len(find_images(DataConfig(dataroot=tmp_path), 0, print).train_B) == 1
