"""Find the images of a dataset: its folders, the held-out images, and the files that are usable."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.config import DataConfig
from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.eight_bits import dark_values, is_dark
from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.image_file import SUFFIXES
from fastcyclegan.errors import UserError, system_reason

LISTED_SUFFIXES = 10


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


@dataclass(frozen=True)
class Found:
    """The images in a folder, sorted by name, and the numbers of its other files by suffix.

    ``unreadable`` contains the subfolders that could not be read, with the reasons.
    """

    folder: Path
    images: list[Path]
    others: Counter[str]
    unreadable: list[str]

    @property
    def passed_over(self) -> str:
        """One line about the files that are no images by their suffixes, and unreadable folders, or ""."""
        parts = []
        count = self.others.total()
        if count:
            files = "1 file is" if count == 1 else f"{count:,} files are"
            parts.append(f"{files} passed over, by suffix: {self.counted_others()}")
        if self.unreadable:
            folders = "1 folder" if len(self.unreadable) == 1 else f"{len(self.unreadable):,} folders"
            parts.append(f"{folders} cannot be read: {self.unreadable[0]}")
        if not parts:
            return ""
        return f"{self.folder}: {'; '.join(parts)}"

    def require_readable(self, skip: bool) -> None:
        """Raise UserError if there are unreadable subfolders, unless ``skip`` is set."""
        if self.unreadable and not skip:
            raise UserError(
                f"the folder {self.unreadable[0]} cannot be read; pass --skip_bad_images to leave it out"
            )

    def counted_others(self) -> str:
        """Return the most common suffixes of the other files, and their numbers."""
        most = self.others.most_common(LISTED_SUFFIXES)
        listed = [f"{suffix} ({count:,})" for suffix, count in most]
        rest = self.others.total() - sum(count for _, count in most)
        if rest:
            listed.append(f"others ({rest:,})")
        return ", ".join(listed)


def find_files(folder: Path) -> Found:
    """Find the images in ``folder`` and its subfolders, which are the files with the suffix of an image.

    Symbolic links are followed, but no folder is visited twice. Names that begin with a dot are skipped.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    unreadable: list[str] = []
    seen: set[Path] = set()

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename} ({system_reason(error)})")

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        identity = Path(parent).resolve()
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                images.append(Path(parent, name))
            else:
                others[suffix if suffix else "none"] += 1
    images.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Found(folder, images, others, unreadable)


def list_images(folder: Path, limit: int | None = None) -> list[Path]:
    """Return the images that ``find_files`` finds in ``folder``, at most ``limit`` of them."""
    return find_files(folder).images[:limit]


def no_images(found: Found) -> UserError:
    """Return the error to raise if a folder contains no images."""
    suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))
    other = ""
    if found.others:
        other = f"; found: {found.counted_others()}"
    if found.unreadable:
        other += f"; cannot be read: {found.unreadable[0]}"
    return UserError(f"{found.folder}: contains no images (looked for {suffixes}{other})")


def dark_images(folder: Path, files: Iterable[Checked]) -> str:
    """Return a warning if the 16-bit images among ``files`` in ``folder`` use few of their 16 bits, or ""."""
    levels = [file.brightest for file in files if file.brightest is not None]
    if not levels or not is_dark(max(levels)):
        return ""
    images = "its image of 16 bits" if len(levels) == 1 else f"its {len(levels):,} images of 16 bits"
    return f"warning: {folder}: {dark_values(images, max(levels))}"


def identity(path: Path) -> object:
    """Return what identifies the file at ``path``, even if it can be reached by several paths."""
    with contextlib.suppress(OSError):  # it does not exist, or cannot be read, which reading it will tell
        status = path.stat()
        if status.st_ino:  # some network disks number no files
            return status.st_dev, status.st_ino
    return os.path.realpath(path)


def shared_images(folders: Mapping[str, Path], paths: Mapping[str, Sequence[Path]]) -> str:
    """Return a warning if images of one domain are also in the other's folder, or "".

    ``folders`` and ``paths`` contain the folder and the images of each of two domains, by name. Links to a
    file are that file, but copies are not.
    """
    (a, in_a), (b, in_b) = [(name, set(map(identity, paths[name]))) for name in folders]
    count = len(in_a & in_b)
    if not count:
        return ""
    images = "1 image is" if count == 1 else f"{count:,} images are"
    return f"warning: {images} in both {a} ({folders[a]}) and {b} ({folders[b]})"


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
        digest = hashlib.sha256(os.fsencode(f"{seed}/{path.relative_to(folder).as_posix()}")).digest()
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
    checks = check_files(paths, progress, config.allow_decompression_bombs)
    for path, checked in zip(paths, checks, strict=True):
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

    def report(found: Found) -> None:
        found.require_readable(config.skip_bad_images)
        if found.passed_over:
            log(found.passed_over)

    train_A, test_A = _images_of_domain(folders.train_A, folders.test_A, folders.holdout, seed, limit, report)
    train_B, test_B = _images_of_domain(folders.train_B, folders.test_B, folders.holdout, seed, limit, report)
    good = usable_images([*train_A, *test_A, *train_B, *test_B], config, required, log, progress)
    _warn(folders, [*train_A, *test_A], [*train_B, *test_B], good, log)
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


def _images_of_domain(
    folder: Path,
    test: Path | None,
    holdout: float,
    seed: int,
    limit: int | None,
    report: Callable[[Found], None],
) -> tuple[list[Path], list[Path]]:
    """Return the (training, test) images of a domain. Without a ``test`` folder, they are held out."""
    found = find_files(folder)
    if not found.images:
        raise no_images(found)
    images, held_out = split_holdout(found.images, folder, holdout, seed)
    report(found)
    if test is not None:
        found = find_files(test)
        held_out = found.images
        report(found)
    return images[:limit], held_out[:limit]


def _warn(
    folders: Folders,
    paths_A: Sequence[Path],
    paths_B: Sequence[Path],
    good: Mapping[Path, Checked],
    log: Callable[[str], None],
) -> None:
    """Log warnings about images that can be read, but are probably not what they should be."""
    both = {"domain A": folders.train_A, "domain B": folders.train_B}
    warnings = [shared_images(both, {"domain A": paths_A, "domain B": paths_B})]
    for folder, paths in ((folders.train_A, paths_A), (folders.train_B, paths_B)):
        warnings.append(dark_images(folder, [good[path] for path in paths if path in good]))
    for warning in filter(None, warnings):
        log(warning)


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a short hash of the file names of ``paths``, in order.

    A resumed run compares the hash with the saved one to detect whether its images have changed.
    """
    return hashlib.sha256(os.fsencode("\n".join(path.name for path in paths))).hexdigest()[:16]
