"""Find the images of a dataset: its folders, the held-out images, and the files that are usable."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.config import DataConfig
from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.image_file import SUFFIXES, Fit, ImageRequirements
from fastcyclegan.errors import UserError


@dataclass(frozen=True)
class Folders:
    """A dataset's folders, assigned to the model's A and B. Test folders are None if they do not exist."""

    train_A: Path
    train_B: Path
    test_A: Path | None = None
    test_B: Path | None = None
    holdout: float = 0.0


def find_folders(config: DataConfig) -> Folders:
    """Return the folders that ``config`` names. Raises UserError if a training folder is missing."""
    if config.data_A is not None and config.data_B is not None:
        for path in (config.data_A, config.data_B):
            _need_folder(path)
        if config.data_A.resolve() == config.data_B.resolve():
            raise UserError(f"--data_A and --data_B are the same folder: {config.data_A}")
        folders = Folders(config.data_A, config.data_B, holdout=config.holdout)
    else:
        assert config.dataroot is not None
        folders = _inside(config.dataroot)
    if config.direction == "BtoA":
        return Folders(folders.train_B, folders.train_A, folders.test_B, folders.test_A, folders.holdout)
    return folders


def _need_folder(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: not a folder")


def _inside(root: Path) -> Folders:
    _need_folder(root)
    for separator in ("", "/"):
        train_A, train_B = root / f"train{separator}A", root / f"train{separator}B"
        if train_A.is_dir() or train_B.is_dir():
            _need_folder(train_A)
            _need_folder(train_B)
            test_A = _if_folder(root / f"test{separator}A")
            test_B = _if_folder(root / f"test{separator}B")
            return Folders(train_A, train_B, test_A, test_B)
    raise UserError(
        f"{root}: contains neither trainA and trainB nor train/A and train/B; to use two other folders, pass"
        " --data_A and --data_B"
    )


def _if_folder(folder: Path) -> Path | None:
    if folder.is_dir():
        return folder
    return None


def list_images(folder: Path, limit: int | None = None) -> list[Path]:
    """Return the images in ``folder`` and its subfolders, sorted by name, at most ``limit`` of them.

    Symbolic links are followed, but no folder is visited twice. Names that begin with a dot are skipped.
    """
    paths: list[Path] = []
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        identity = Path(parent).resolve()
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                paths.append(Path(parent, name))
    paths.sort(key=lambda path: path.relative_to(folder).as_posix())
    return paths[:limit]


def no_images(folder: Path) -> UserError:
    """Return the error to raise if ``list_images`` finds nothing in ``folder``."""
    suffixes = sorted(suffix.removeprefix(".") for suffix in SUFFIXES)
    return UserError(f"{folder}: contains no images (looked for {', '.join(suffixes)})")


def split_holdout(
    paths: Sequence[Path], folder: Path, share: float, seed: int
) -> tuple[list[Path], list[Path]]:
    """Split ``paths`` into (training, held-out) images.

    The part that an image belongs to depends only on a hash of the seed and the image's name. The fraction
    ``share`` is held out, but at least one image if ``share`` > 0 and there are two or more, and never all.
    """
    if share <= 0 or len(paths) < 2:
        return list(paths), []

    def position(path: Path) -> float:
        digest = hashlib.sha256(f"{seed}/{path.relative_to(folder).as_posix()}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    ranked = sorted(paths, key=position)
    below = sum(position(path) < share for path in paths)
    count = min(max(1, below), len(paths) - 1)
    chosen = set(ranked[:count])
    train, held_out = [], []
    for path in paths:
        if path in chosen:
            held_out.append(path)
        else:
            train.append(path)
    return train, held_out


def too_small(checked: Checked, fit: Fit, required: ImageRequirements) -> str:
    """Return why a readable image is too small for the crop or the networks, or "" if it is not."""
    size = checked.width, checked.height
    reason = fit.too_small(size)
    if reason:
        return reason
    if min(fit.resized(size)) < required.least_side:
        least = f"at least {required.least_side} pixels per side"
        return f"{checked.width}x{checked.height} is too small: the networks need {least}"
    return ""


def usable_images(
    paths: Sequence[Path],
    config: DataConfig,
    required: ImageRequirements,
    log: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> dict[Path, Checked]:
    """Return the usable images among ``paths``, with the results of their checks.

    Bad images raise UserError or, with skip_bad_images, are logged and left out.
    """
    bad = []
    good = {}
    fit = Fit.of(config, multiple=required.size_multiple)
    for path, checked in zip(paths, check_files(paths, progress), strict=True):
        reason = checked.error
        if not reason:
            reason = too_small(checked, fit, required)
        if reason:
            bad.append(f"{path}: {reason}")
        else:
            good[path] = checked
    if bad and not config.skip_bad_images:
        first = bad[0]
        if len(bad) > 1:
            first += f" (and {len(bad) - 1} more)"
        raise UserError(f"bad image {first}; pass --skip_bad_images to list and skip such images")
    for line in bad:
        log(f"skipped {line}")
    return good


@dataclass(frozen=True)
class Images:
    """The usable images of a dataset, assigned to the model's A and B, and the results of their checks.

    The test lists may be empty.
    """

    train_A: list[Path]
    train_B: list[Path]
    test_A: list[Path]
    test_B: list[Path]
    checked: dict[Path, Checked]


def find_images(
    config: DataConfig,
    seed: int,
    log: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    required: ImageRequirements = ImageRequirements(),
) -> Images:
    """Find and check all images that ``config`` names.

    Raises UserError if a folder is missing or empty, or if it contains a bad image.
    """
    folders = find_folders(config)
    limit = config.max_dataset_size
    train_A, test_A = _training_images(folders.train_A, folders.holdout, seed, limit)
    train_B, test_B = _training_images(folders.train_B, folders.holdout, seed, limit)
    if folders.test_A is not None:
        test_A = list_images(folders.test_A, limit)
    if folders.test_B is not None:
        test_B = list_images(folders.test_B, limit)
    good = usable_images([*train_A, *test_A, *train_B, *test_B], config, required, log, progress)
    images = Images(
        train_A=[path for path in train_A if path in good],
        train_B=[path for path in train_B if path in good],
        test_A=[path for path in test_A if path in good],
        test_B=[path for path in test_B if path in good],
        checked=good,
    )
    for folder, remaining in ((folders.train_A, images.train_A), (folders.train_B, images.train_B)):
        if not remaining:
            raise UserError(f"{folder}: contains no usable images")
    return images


def _training_images(
    folder: Path, holdout: float, seed: int, limit: int | None
) -> tuple[list[Path], list[Path]]:
    """Return the images of a training folder, split into (training, held-out) images."""
    paths = list_images(folder)
    if not paths:
        raise no_images(folder)
    train, held_out = split_holdout(paths, folder, holdout, seed)
    return train[:limit], held_out[:limit]


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a short hash of the file names of ``paths``, in order.

    A resumed run compares the hash with the saved one to detect whether its images have changed.
    """
    return hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()[:16]
