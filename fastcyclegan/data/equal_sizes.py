"""The sizes that images have when they are loaded, which must be equal where several form a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcyclegan.config import DataConfig
from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.image_file import Size
from fastcyclegan.errors import UserError


def _resized(path: Path, checked: Mapping[Path, Checked], fit: Fit) -> Size:
    file = checked[path]
    return fit.resized((file.width, file.height))


def required_size(
    paths: Sequence[Path], checked: Mapping[Path, Checked], fit: Fit, data: DataConfig
) -> Size | None:
    """Return the (width, height) that all images ``paths`` of a domain must have, or None if they may differ.

    They have one size if they are cropped. Otherwise they need one for batches of more than one image: that
    of most images, if ``data.skip_bad_images`` lets the loader skip the others. Raises UserError, which names
    two images, if they do not have it.
    """
    if fit.crop is not None:
        return fit.crop
    if data.batch_size == 1:
        return None
    sizes = [_resized(path, checked, fit) for path in paths]
    if data.skip_bad_images:
        return Counter(sizes).most_common(1)[0][0]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            found = f"{paths[0]} is {_text(sizes[0])} and {path} is {_text(size)}"
            raise UserError(
                f"--batch_size {data.batch_size} needs images of equal size, but after --preprocess"
                f" {fit.preprocess} {found}: remove those of other sizes, or pass --skip_bad_images; a new"
                " run can use --batch_size 1, or --preprocess scale_width_and_crop or crop with --crop_size"
                " HEIGHT WIDTH"
            )
    return sizes[0]


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def largest_sides(paths: Sequence[Path], checked: Mapping[Path, Checked], fit: Fit) -> Size:
    """Return the largest width and the largest height of the images ``paths`` when they are loaded."""
    if fit.crop is not None:
        return fit.crop
    sizes = [_resized(path, checked, fit) for path in paths]
    return max(width for width, _ in sizes), max(height for _, height in sizes)
