"""The held-out images of a dataset: those to translate, and the real ones to compare the results with."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.folders import has_train, need_folder
from fastcyclegan.data.listing import list_images
from fastcyclegan.data.pairs import find_pairs
from fastcyclegan.data.scan import Images, find_images
from fastcyclegan.errors import UserError
from fastcyclegan.metrics.images import ImageFiles
from fastcyclegan.settings.crop_size import sides_of
from fastcyclegan.settings.data import DataConfig, Direction, Layout


@dataclass(frozen=True)
class HeldOut:
    """Images to translate, and real images of the other domain.

    ``partners`` has the index of the real image that is the true translation of each source, or None.
    ``ambiguous`` tells why images cannot be paired by their names, or is "".
    """

    sources: ImageFiles
    reals: ImageFiles
    partners: list[int | None]
    ambiguous: str = ""

    @property
    def has_pairs(self) -> bool:
        return any(partner is not None for partner in self.partners)


def evaluation_fit(data: DataConfig, channels: int, multiple: int) -> Fit:
    """Return how images are resized to be evaluated: whole, in the size that ``data`` trains on.

    With resize_and_crop, that is the size of the crop, as in the official test. The other modes resize as in
    training, but do not crop, and round the sides to what the networks need.
    """
    fit = Fit.of(data, channels, multiple)
    if data.preprocess == "resize_and_crop":
        return resized_to(sides_of(data.crop_size), fit)
    if "scale_width" in data.preprocess:
        return replace(fit, preprocess="scale_width")
    return Fit("none", channels=channels, multiple=multiple, any_size=fit.any_size)


def resized_to(sides: tuple[int, int] | None, fit: Fit) -> Fit:
    """Return how images are read that are resized to ``sides``, (height, width), or keep theirs if None.

    They are otherwise read as ``fit`` describes. It has no settings without an effect, so that equal images
    are recognised.
    """
    if sides is None:
        return Fit(channels=fit.channels, any_size=fit.any_size)
    return Fit("exact", crop_size=sides, channels=fit.channels, any_size=fit.any_size)


def held_out(images: Images, data: DataConfig, required: ImageRequirements, of_model: Direction) -> HeldOut:
    """Return the held-out images for the direction ``of_model``, from the model's domain A to B or back.

    Raises UserError if there are none.
    """
    files = {}
    for side, paths, channels in zip("AB", (images.test_A, images.test_B), required.channels, strict=True):
        if not paths:
            raise UserError(
                f"there are no held-out images of domain {side} to evaluate with: put some into test{side}"
                " (for pairs: into val or test)"
            )
        fit = evaluation_fit(data, channels, required.size_multiple)
        files[side] = ImageFiles(paths, fit, images.half(side))
    source, target = ("A", "B") if of_model == "AtoB" else ("B", "A")
    sources, reals = files[source], files[target]
    if images.layout == "aligned":
        return HeldOut(sources, reals, list(range(len(images.test_A))))
    folders = _folder_of(sources.paths), _folder_of(reals.paths)
    return HeldOut(sources, reals, *partners_of(folders[0], sources.paths, folders[1], reals.paths))


def find_held_out(
    data: DataConfig,
    seed: int,
    required: ImageRequirements,
    allowed: Collection[Layout],
    log: Callable[[str], None],
) -> Images:
    """Find the held-out images that ``data`` names: those that a run with these settings holds out.

    A dataset with test folders need not have training images, and pairs side by side can be those of two
    domains. The other arguments are those of ``find_images``, which raises the same errors.
    """
    root, limit = data.dataroot, data.max_dataset_size
    if data.dataset_mode == "single":
        raise UserError("single images have no others that their translations could be compared with")
    if root is not None:
        need_folder(root)
        found = _of_test_folders(root, data, allowed, log)
        if found is not None:
            a, b = (paths[:limit] for paths in (found.test_A, found.test_B))
            return replace(found, test_A=a, test_B=b)
        if not has_train(root) and not _has_training(root):
            raise UserError(
                f"{root}: contains no held-out images of two domains: they should be in testA and testB (for"
                " pairs: in val or test)"
            )
    return find_images(data, seed, log, None, required, allowed)


def _of_test_folders(
    root: Path, data: DataConfig, allowed: Collection[Layout], log: Callable[[str], None]
) -> Images | None:
    """Return the images in the test folders of ``root``, or None if it has none that fit the layout."""
    for separator in ("", "/"):
        folder_A, folder_B = root / f"test{separator}A", root / f"test{separator}B"
        test_A, test_B = list_if_any(folder_A), list_if_any(folder_B)
        if not test_A or not test_B:
            continue
        if data.dataset_mode == "aligned":
            pairs = find_pairs(folder_A, test_A, folder_B, test_B)
            lone = len(pairs.only_A) + len(pairs.only_B)
            if lone:
                log(f"{root}: left out {lone:,} held-out images without a partner")
            test_A, test_B = pairs.A, pairs.B
        if data.direction == "BtoA":
            test_A, test_B = test_B, test_A
        return Images([], [], test_A, test_B, {}, data.dataset_mode, direction=data.direction)
    if data.dataset_mode == "aligned" or ("aligned" in allowed and not _has_domains(root)):
        for name in ("val", "test"):
            files = list_if_any(root / name)
            if files:
                return Images([], [], files, files, {}, "aligned", True, data.direction)
    return None


def _has_domains(root: Path) -> bool:
    """Return whether ``root`` has the folder of a domain, such as trainA or test/B."""
    names = itertools.product(("train", "val", "test"), ("", "/"), "AB")
    return any((root / "".join(name)).is_dir() for name in names)


def _has_training(root: Path) -> bool:
    """Return whether ``root`` has training images of a domain, of which a run may hold some out."""
    return any((root / f"train{separator}{side}").is_dir() for separator in ("", "/") for side in "AB")


def list_if_any(folder: Path) -> list[Path]:
    """Return the images in ``folder``, or [] if there is no such folder."""
    return list_images(folder) if folder.is_dir() else []


def partners_of(
    source_folder: Path, sources: Sequence[Path], real_folder: Path, reals: Sequence[Path]
) -> tuple[list[int | None], str]:
    """Return the index in ``reals`` of the image with the same name as each of ``sources``, or None.

    Names are those within the folders, compared as those of pairs are in training (see ``data.pairs``). If an
    image has two candidates, no image has a partner, and the text tells which; otherwise it is "".
    """
    try:
        pairs = find_pairs(source_folder, sources, real_folder, reals)
        # The endings _A and _B tell the domains, and either can be that of the sources.
        back = find_pairs(real_folder, pairs.only_B, source_folder, pairs.only_A)
    except UserError as error:
        return [None] * len(sources), str(error)
    index = {path: number for number, path in enumerate(reals)}
    partner = {a: index[b] for a, b in zip(pairs.A + back.B, pairs.B + back.A, strict=True)}
    return [partner.get(path) for path in sources], ""


def _folder_of(paths: Sequence[Path]) -> Path:
    """Return the innermost folder that contains all ``paths``."""
    return Path(os.path.commonpath([path.parent for path in paths]))
