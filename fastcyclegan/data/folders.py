"""Find the folders of a dataset in each layout, and name the layout of one that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.data.image_file import SUFFIXES
from fastcyclegan.data.listing import find_files, no_images
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig, Layout

LAYOUTS: tuple[Layout, ...] = ("unaligned", "aligned", "single")
_SEPARATORS = ("", "/")
_NEEDS: dict[Layout, str] = {
    "unaligned": "two domains in trainA and trainB, or train/A and train/B",
    "aligned": "pairs, side by side in the files of train or of the same names in trainA and trainB",
    "single": "single images in train",
}
_OTHERWISE: dict[Layout, str] = {
    "unaligned": "to use two other folders, pass --data_A and --data_B",
    "aligned": "to use two other folders, with images of the same names, pass --data_A and --data_B",
    "single": "to use any other folder, pass --data",
}


@dataclass(frozen=True)
class Folders:
    """A dataset's folders, assigned to the model's A and B. Test folders are None if they do not exist."""

    train_A: Path
    train_B: Path
    test_A: Path | None = None
    test_B: Path | None = None
    holdout: float = 0.0


@dataclass(frozen=True)
class OneFolder:
    """The folder of a dataset of single images, or of pairs side by side in one file.

    ``test`` is None if it does not exist.
    """

    train: Path
    test: Path | None = None
    holdout: float = 0.0


def find_folders(config: DataConfig, allowed: Collection[Layout] = LAYOUTS) -> Folders:
    """Return the folders of the two domains that ``config`` names, in its direction.

    Raises UserError if a training folder is missing; the message names the layouts ``allowed`` that fit.
    """
    folders = two_folders(config)
    if folders is None:
        assert config.dataroot is not None
        raise wrong_layout(config.dataroot, "unaligned", allowed)
    if config.direction == "BtoA":
        return Folders(folders.train_B, folders.train_A, folders.test_B, folders.test_A, folders.holdout)
    return folders


def two_folders(config: DataConfig) -> Folders | None:
    """Return the folders of A and B that ``config`` names, or None if its dataroot has other folders.

    The direction is disregarded. Raises UserError if one of the two training folders is missing.
    """
    if config.data_A is not None and config.data_B is not None:
        for path in (config.data_A, config.data_B):
            need_folder(path)
        if config.data_A.resolve() == config.data_B.resolve():
            raise UserError(f"--data_A and --data_B are the same folder: {config.data_A}")
        return Folders(config.data_A, config.data_B, holdout=config.holdout)
    root = config.dataroot
    assert root is not None
    need_folder(root)
    separator = _separator_in(root)
    if separator is None:
        return None
    train_A, train_B = root / f"train{separator}A", root / f"train{separator}B"
    need_folder(train_A)
    need_folder(train_B)
    return Folders(
        train_A, train_B, _if_folder(root / f"test{separator}A"), _if_folder(root / f"test{separator}B")
    )


def one_folder(config: DataConfig, allowed: Collection[Layout]) -> OneFolder:
    """Return the folder of images that ``config`` names: --data, or train in the dataroot.

    The held-out images are in val or, if it contains none, in test. Raises UserError if the folder is
    missing, or if the dataroot has another layout; the message names the layouts ``allowed`` that fit.
    """
    if config.data is not None:
        need_folder(config.data)
        return OneFolder(config.data, holdout=config.holdout)
    assert config.dataroot is not None
    root, wanted = config.dataroot, config.dataset_mode
    need_folder(root)
    if not has_train(root):
        raise wrong_layout(root, wanted, allowed)
    folders = aligned_folders(root)
    return OneFolder(folders["train"], _held_out(folders))


def _held_out(folders: Mapping[str, Path]) -> Path | None:
    """Return the folder val or, if it is missing or contains no images, test; None without both."""
    existing = [folders[name] for name in ("val", "test") if name in folders]
    for found in map(find_files, existing):
        if found.images or found.unreadable:  # what cannot be read is the caller's to report
            return found.folder
    return existing[0] if existing else None


def aligned_folders(root: Path) -> dict[str, Path]:
    """Return those of the folders train, val and test of ``root`` that exist, by name.

    Raises UserError if train is missing or contains no images.
    """
    need_folder(root)
    need_folder(root / "train")
    found = find_files(root / "train")
    if not found.images:
        raise no_images(found)
    return {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}


def has_train(root: Path) -> bool:
    """Return whether ``root`` has a folder train that is not divided into A and B."""
    return (root / "train").is_dir() and not any((root / "train" / side).is_dir() for side in "AB")


def need_folder(path: Path) -> None:
    """Raise UserError if ``path`` is not a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder")


def _if_folder(folder: Path) -> Path | None:
    if folder.is_dir():
        return folder
    return None


def _separator_in(root: Path) -> str | None:
    """Return what is between train and A in the names of the domains' folders, or None without them."""
    for separator in _SEPARATORS:
        if any((root / f"train{separator}{side}").is_dir() for side in "AB"):
            return separator
    return None


def wrong_layout(root: Path, wanted: Layout, allowed: Collection[Layout]) -> UserError:
    """Return the error to raise if ``root`` does not have the layout ``wanted``.

    The message describes the layout that it has, and names the flags with which a recipe that can train on
    the layouts ``allowed`` trains on it, or else what gives the recipe what it needs.
    """
    found, ways = _found_in(root, wanted, allowed)
    if not ways:
        ways = [_OTHERWISE[wanted]]
    needed = f"this run needs {_NEEDS[wanted]} (--dataset_mode {wanted})"
    return UserError(f"{root} {found}, but {needed}; {'; '.join(ways)}")


def _found_in(root: Path, wanted: Layout, allowed: Collection[Layout]) -> tuple[str, list[str]]:
    """Return what ``root`` contains, and how it can be trained on."""
    ways = []
    separator = _separator_in(root)
    if separator is not None:
        names = f"train{separator}A and train{separator}B"
        found = f"contains {names}, two domains (unaligned)"
        if wanted == "aligned":
            found += " without a pair of images of the same name"
        if "unaligned" in allowed:
            ways.append("--dataset_mode unaligned trains on it")
        if "single" in allowed:
            ways.append(f"--data {root / f'train{separator}A'} trains on the images of one domain")
        return found, ways
    if has_train(root):
        if "aligned" in allowed:
            ways.append("--dataset_mode aligned trains on it if its images are pairs side by side")
        if "single" in allowed:
            ways.append("--dataset_mode single trains on it as single images")
        return "contains train, which is not divided into two domains", ways
    if any(path.suffix.lower() in SUFFIXES and path.is_file() for path in root.iterdir()):
        if "single" in allowed:
            ways.append(f"--data {root} trains on it")
        return "contains images and no folder train", ways
    return "contains neither trainA and trainB, nor train/A and train/B, nor train", ways
