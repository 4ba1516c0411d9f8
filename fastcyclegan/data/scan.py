"""Find the images of a dataset: its folders, the held-out images, and the files that are usable."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.eight_bits import dark_values, is_dark
from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.folders import (
    LAYOUTS,
    Folders,
    aligned_folders,
    find_folders,
    has_train,
    one_folder,
    two_folders,
    wrong_layout,
)
from fastcyclegan.data.halves import Half
from fastcyclegan.data.listing import Found, find_files, list_images, no_images
from fastcyclegan.data.pairs import Pairs, find_pairs
from fastcyclegan.data.usable import Pair, usable_images, usable_pairs, without_partner
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig, Direction, Layout

__all__ = [
    "Folders",
    "Found",
    "Images",
    "aligned_folders",
    "dark_images",
    "find_files",
    "find_folders",
    "find_images",
    "fingerprint",
    "identity",
    "list_images",
    "no_images",
    "shared_images",
    "split_holdout",
]


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


@dataclass(frozen=True)
class Images:
    """The usable images of a dataset, assigned to the model's A and B, and the results of their checks.

    The test lists may be empty. In the layout aligned, ``train_A[i]`` and ``train_B[i]`` are a pair, and so
    are ``test_A[i]`` and ``test_B[i]``; with ``halves``, both are the same file, which holds A and B side by
    side. In the layout single, the lists of B are empty.
    """

    train_A: list[Path]
    train_B: list[Path]
    test_A: list[Path]
    test_B: list[Path]
    checked: dict[Path, Checked]
    layout: Layout = "unaligned"
    halves: bool = False
    direction: Direction = "AtoB"

    @property
    def is_paired(self) -> bool:
        """Whether a sample consists of the images of one index: a pair, or a single image."""
        return self.layout != "unaligned"

    def half(self, side: str) -> Half | None:
        """Return the half of each file that is the image of domain ``side``, or None for the whole file."""
        if not self.halves:
            return None
        return "left" if (side == "A") == (self.direction == "AtoB") else "right"


def find_images(
    config: DataConfig,
    seed: int,
    log: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    required: ImageRequirements = ImageRequirements(),
    allowed: Collection[Layout] = LAYOUTS,
) -> Images:
    """Find and check all images that ``config`` names.

    ``allowed`` are the layouts that the recipe can train on. Raises UserError if a folder is missing or
    empty, if it has another layout than ``config.dataset_mode`` (the message names the flags that fit), or if
    it contains a bad image, or an image without a partner.
    """
    search = _Search(config, seed, log, progress, required, allowed)
    if config.dataset_mode == "single":
        return search.single()
    if config.dataset_mode == "unaligned":
        return search.unaligned()
    if config.dataroot is not None and has_train(config.dataroot):
        return search.side_by_side()
    return search.pairs()


@dataclass(frozen=True)
class _Search:
    """Finds the images of one layout. The fields are the arguments of ``find_images``."""

    config: DataConfig
    seed: int
    log: Callable[[str], None]
    progress: Callable[[int, int], None] | None
    required: ImageRequirements
    allowed: Collection[Layout]

    def unaligned(self) -> Images:
        folders = find_folders(self.config, self.allowed)
        train_A, test_A = self._images_of(folders.train_A, folders.test_A, folders.holdout)
        train_B, test_B = self._images_of(folders.train_B, folders.test_B, folders.holdout)
        good = self._usable([*train_A, *test_A, *train_B, *test_B])
        self._warn(folders, [*train_A, *test_A], [*train_B, *test_B], good)
        images = Images(
            train_A=[path for path in train_A if path in good],
            train_B=[path for path in train_B if path in good],
            test_A=[path for path in test_A if path in good],
            test_B=[path for path in test_B if path in good],
            checked=good,
        )
        _require_some(folders.train_A, images.train_A)
        _require_some(folders.train_B, images.train_B)
        return images

    def single(self) -> Images:
        train, test, good = self._of_one_folder(cut=False)
        return Images(train, [], test, [], good, "single")

    def side_by_side(self) -> Images:
        train, test, good = self._of_one_folder(cut=True)
        return Images(train, train, test, test, good, "aligned", True, self.config.direction)

    def _of_one_folder(self, cut: bool) -> tuple[list[Path], list[Path], dict[Path, Checked]]:
        """Return the usable training and test images of one folder; if ``cut``, each contains a pair."""
        folder = one_folder(self.config, self.allowed)
        train, test = self._images_of(folder.train, folder.test, folder.holdout)
        good = self._usable([*train, *test], cut)
        for warning in filter(None, [dark_images(folder.train, good.values())]):
            self.log(warning)
        train = [path for path in train if path in good]
        _require_some(folder.train, train)
        return train, [path for path in test if path in good], good

    def pairs(self) -> Images:
        """Find pairs in two folders. They are held out in either direction alike."""
        folders = two_folders(self.config)
        if folders is None:
            assert self.config.dataroot is not None
            raise wrong_layout(self.config.dataroot, "aligned", self.allowed)
        train, test = self._pairs_of(folders)
        paths_A, paths_B = [a for a, _ in (*train, *test)], [b for _, b in (*train, *test)]
        good = self._usable([*paths_A, *paths_B])
        self._warn(folders, paths_A, paths_B, good)
        fit = Fit.of(self.config, multiple=self.required.size_multiple)
        kept = set(usable_pairs([*train, *test], good, fit, self.config.skip_bad_images, self.log))
        (train_A, train_B), (test_A, test_B) = (_two_lists(pairs, kept) for pairs in (train, test))
        _require_some(folders.train_A, train_A, "pairs")
        if self.config.direction == "BtoA":
            train_A, train_B, test_A, test_B = train_B, train_A, test_B, test_A
        return Images(train_A, train_B, test_A, test_B, good, "aligned", direction=self.config.direction)

    def _pairs_of(self, folders: Folders) -> tuple[list[Pair], list[Pair]]:
        """Return the (training, test) pairs. Without test folders, they are held out."""
        limit = self.config.max_dataset_size
        found = self._candidates(folders.train_A, folders.train_B)
        if not found.A:
            raise self._no_pairs(folders)
        train = self._paired(found, folders.train_A, folders.train_B)
        images, held_out = split_holdout(list(train), folders.train_A, folders.holdout, self.seed)
        test = {a: train[a] for a in held_out}
        if folders.test_A is not None and folders.test_B is not None:
            found = self._candidates(folders.test_A, folders.test_B)
            test = self._paired(found, folders.test_A, folders.test_B)
        else:
            for folder in filter(None, (folders.test_A, folders.test_B)):
                self.log(f"{folder}: not used, because the folder with the partners is missing")
        return [(a, train[a]) for a in images][:limit], list(test.items())[:limit]

    def _candidates(self, folder_A: Path, folder_B: Path) -> Pairs:
        """Find the pairs of two folders, and the images without a partner."""
        found_A, found_B = find_files(folder_A), find_files(folder_B)
        pairs = find_pairs(folder_A, found_A.images, folder_B, found_B.images)
        self._report(found_A)
        self._report(found_B)
        return pairs

    def _paired(self, pairs: Pairs, folder_A: Path, folder_B: Path) -> dict[Path, Path]:
        """Return the images of ``folder_A`` that have a partner in ``folder_B``, with their partners.

        Images without a partner raise UserError or, with skip_bad_images, are logged and left out.
        """
        lone = without_partner(pairs, folder_A, folder_B)
        if lone and not self.config.skip_bad_images:
            raise UserError(f"{lone}; pass --skip_bad_images to leave them out")
        if lone:
            self.log(f"left out {lone}")
        return dict(zip(pairs.A, pairs.B, strict=True))

    def _no_pairs(self, folders: Folders) -> UserError:
        """Return the error to raise if no image of the training folders has a partner."""
        for found in map(find_files, (folders.train_A, folders.train_B)):
            if not found.images:
                return no_images(found)
        if self.config.dataroot is not None:
            return wrong_layout(self.config.dataroot, "aligned", self.allowed)
        way_out = "rename the images of a pair alike"
        if "unaligned" in self.allowed:
            way_out = "--dataset_mode unaligned trains on images without partners"
        folder_A, folder_B = folders.train_A, folders.train_B
        return UserError(f"no image of {folder_A} has a partner of the same name in {folder_B}; {way_out}")

    def _images_of(self, folder: Path, test: Path | None, holdout: float) -> tuple[list[Path], list[Path]]:
        """Return the (training, test) images of a domain. Without a ``test`` folder, they are held out."""
        limit = self.config.max_dataset_size
        found = find_files(folder)
        if not found.images:
            raise no_images(found)
        images, held_out = split_holdout(found.images, folder, holdout, self.seed)
        self._report(found)
        if test is not None:
            found = find_files(test)
            held_out = found.images
            self._report(found)
        return images[:limit], held_out[:limit]

    def _report(self, found: Found) -> None:
        found.require_readable(self.config.skip_bad_images)
        if found.passed_over:
            self.log(found.passed_over)

    def _usable(self, paths: Sequence[Path], cut: bool = False) -> dict[Path, Checked]:
        return usable_images(paths, self.config, self.required, self.log, self.progress, cut)

    def _warn(
        self,
        folders: Folders,
        paths_A: Sequence[Path],
        paths_B: Sequence[Path],
        good: Mapping[Path, Checked],
    ) -> None:
        """Log warnings about images that can be read, but are probably not what they should be."""
        both = {"domain A": folders.train_A, "domain B": folders.train_B}
        warnings = [shared_images(both, {"domain A": paths_A, "domain B": paths_B})]
        for folder, paths in ((folders.train_A, paths_A), (folders.train_B, paths_B)):
            warnings.append(dark_images(folder, [good[path] for path in paths if path in good]))
        for warning in filter(None, warnings):
            self.log(warning)


def _two_lists(pairs: Sequence[Pair], kept: Collection[Pair]) -> tuple[list[Path], list[Path]]:
    """Return the images of A and those of B of the ``pairs`` that are ``kept``."""
    usable = [pair for pair in pairs if pair in kept]
    return [a for a, _ in usable], [b for _, b in usable]


def _require_some(folder: Path, remaining: Sequence[Path], what: str = "images") -> None:
    if not remaining:
        raise UserError(f"{folder}: contains no usable {what}")


def fingerprint(paths: Sequence[Path]) -> str:
    """Return a short hash of the file names of ``paths``, in order.

    A resumed run compares the hash with the saved one to detect whether its images have changed.
    """
    return hashlib.sha256(os.fsencode("\n".join(path.name for path in paths))).hexdigest()[:16]
