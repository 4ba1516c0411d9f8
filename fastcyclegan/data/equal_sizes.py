"""The sizes that images have when they are loaded, which must be equal where several form a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.halves import Half, half_size
from fastcyclegan.data.image_file import Size
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig


def resized_size(checked: Checked, fit: Fit, half: Half | None = None) -> Size:
    """Return the (width, height) of an image, or of a ``half`` of it, after the resize."""
    return fit.resized(half_size(checked.size, half))


def required_size(
    paths: Sequence[Path],
    checked: Mapping[Path, Checked],
    fit: Fit,
    data: DataConfig,
    half: Half | None = None,
) -> Size | None:
    """Return the (width, height) that all images ``paths`` of a domain must have, or None if they may differ.

    If ``half`` is given, the images are those halves of the files.
    They have one size if they are cropped. Otherwise they need one for batches of more than one image: that
    of most images, if ``data.skip_bad_images`` lets the loader skip the others. Raises UserError, which names
    two images, if they do not have it.
    """
    if fit.crop is not None:
        return fit.crop
    if data.batch_size == 1:
        return None
    sizes = [resized_size(checked[path], fit, half) for path in paths]
    if data.skip_bad_images:
        return Counter(sizes).most_common(1)[0][0]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            found = f"{paths[0]} is {size_text(sizes[0])} and {path} is {size_text(size)}"
            raise UserError(
                f"--batch_size {data.batch_size} needs images of equal size, but after --preprocess"
                f" {fit.preprocess} {found}: remove those of other sizes, or pass --skip_bad_images; a new"
                " run can use --batch_size 1, or --preprocess scale_width_and_crop or crop with --crop_size"
                " HEIGHT WIDTH"
            )
    return sizes[0]


def size_text(size: Size) -> str:
    """Return ``size`` as messages show it: 640x480."""
    return f"{size[0]}x{size[1]}"


def largest_sides(
    paths: Sequence[Path], checked: Mapping[Path, Checked], fit: Fit, half: Half | None = None
) -> Size:
    """Return the largest width and the largest height of the images ``paths`` when they are loaded.

    If ``half`` is given, the images are those halves of the files.
    """
    if fit.crop is not None:
        return fit.crop
    sizes = [resized_size(checked[path], fit, half) for path in paths]
    return max(width for width, _ in sizes), max(height for _, height in sizes)
