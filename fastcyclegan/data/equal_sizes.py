"""The sizes that images have when they are loaded, which must be equal where several form a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.image_file import Size
from fastcyclegan.errors import UserError


def _resized(path: Path, checked: Mapping[Path, Checked], fit: Fit) -> Size:
    file = checked[path]
    return fit.resized((file.width, file.height))


def required_size(
    paths: Sequence[Path], checked: Mapping[Path, Checked], fit: Fit, batch_size: int
) -> Size | None:
    """Return the (width, height) that all images ``paths`` of a domain must have, or None if they may differ.

    They have one size if they are cropped. Otherwise they need one for batches of more than one image. Raises
    UserError, which names two images, if they do not have it.
    """
    if fit.crop is not None:
        return fit.crop
    if batch_size == 1:
        return None
    first = _resized(paths[0], checked, fit)
    for path in paths[1:]:
        other = _resized(path, checked, fit)
        if other != first:
            sizes = f"{paths[0]} is {first[0]}x{first[1]} and {path} is {other[0]}x{other[1]}"
            raise UserError(
                f"--batch_size {batch_size} needs images of equal size, but after --preprocess"
                f" {fit.preprocess} {sizes}: use --batch_size 1, or --preprocess scale_width_and_crop or crop"
                " with --crop_size HEIGHT WIDTH"
            )
    return first


def largest_sides(paths: Sequence[Path], checked: Mapping[Path, Checked], fit: Fit) -> Size:
    """Return the largest width and the largest height of the images ``paths`` when they are loaded."""
    if fit.crop is not None:
        return fit.crop
    sizes = [_resized(path, checked, fit) for path in paths]
    return max(width for width, _ in sizes), max(height for _, height in sizes)
