"""Examine one folder of a dataset.

The report covers counts, sizes, modes, files that are broken, small or duplicated, and the mean image.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.choose_loader import choose, make_reader
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job
from fastcyclegan.data.scan import find_files, no_images
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize, sides_of

MEAN_SIDE, THUMB_SIDE, THUMBS = 128, 112, 36

# How many files with equal pixels are named.
NAMED = 5


@dataclass
class FolderReport:
    """The findings about one folder of images.

    ``passed_over`` lists the numbers of files that are no images, by suffix, and ``unreadable`` the
    subfolders that could not be read. ``mean`` is the mean image
    [MEAN_SIDE, MEAN_SIDE, 3] in 8-bit levels, or None if no image could be read.
    """

    name: str
    folder: Path
    files: list[Checked]
    passed_over: str = ""
    unreadable: list[str] = field(default_factory=list)
    small: list[Checked] = field(default_factory=list)
    mean: NDArray[np.float64] | None = None
    deviation: float = 0.0
    thumbs: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Checked]:
        return [file for file in self.files if file.error]

    @property
    def good(self) -> list[Checked]:
        return [file for file in self.files if not file.error]


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=85)
    return out.getvalue()


def _thumb(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMB_SIDE, THUMB_SIDE))
    return encode_jpeg(np.asarray(image))


def examine_folder(
    name: str,
    folder: Path,
    crop_size: CropSize,
    progress: Callable[[int, int], None],
    any_size: bool = False,
) -> FolderReport:
    """Read every image in ``folder`` and report on it. Raises UserError if it contains no images.

    ``any_size`` is as in ``image_file.open_image``.
    """
    found = find_files(folder)
    if not found.images:
        raise no_images(found)
    paths = [path.absolute() for path in found.images]
    report = FolderReport(name, folder, check_files(paths, any_size=any_size))
    report.passed_over, report.unreadable = found.counted_others(), found.unreadable
    height, width = sides_of(crop_size)
    report.small = [file for file in report.good if file.width < width or file.height < height]
    every = max(1, len(paths) // THUMBS)
    shown = {str(path) for path in paths[::every][:THUMBS]}
    for file in report.small[:THUMBS]:
        shown.add(file.path)
    total, squares, count = np.zeros((MEAN_SIDE, MEAN_SIDE, 3)), 0.0, 0
    for path, pixels in _pixels_of(report.good, Fit(any_size=any_size)):
        report.hashes[path] = _hash(pixels)
        if path in shown:
            report.thumbs[path] = _thumb(pixels)
        square = _square(pixels)
        total += square
        squares += float((square**2).mean())
        count += 1
        progress(count, len(paths))
    if count:
        report.mean = total / count
        report.deviation = float(np.sqrt(max(squares / count - (report.mean.mean()) ** 2, 0.0)))
    return report


def _pixels_of(files: Sequence[Checked], fit: Fit) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the path and the pixels of each of ``files``."""
    cpu = torch.device("cpu")
    reader = make_reader(choose("auto", cpu), fit, cpu, lambda text: None)
    for job, row in reader.read(Job(Path(file.path), None, file) for file in files):
        if isinstance(row, BadImageError):  # the file broke after it was checked
            if row.is_lack_of_memory:
                raise row
            raise UserError(f"{row}; the file changed while the dataset was being examined")
        yield str(job.path), row.numpy()


def _hash(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    sides = (MEAN_SIDE, MEAN_SIDE)
    image = Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image, dtype=np.float64)


Group = list[tuple[str, str]]
"""Files with equal pixels, each as (name of its folder, path)."""


def duplicates(reports: Sequence[FolderReport]) -> list[Group]:
    """Return the groups of files with equal pixels; groups that span several folders come first."""
    groups: defaultdict[str, Group] = defaultdict(list)
    for report in reports:
        for path, digest in report.hashes.items():
            groups[digest].append((report.name, path))
    within, across = [], []
    for group in groups.values():
        names = {name for name, _ in group}
        if len(names) > 1:
            across.append(group)
        elif len(group) > 1:
            within.append(group)
    return sorted(across) + sorted(within)


def summary(report: FolderReport, crop_size: CropSize) -> dict[str, str]:
    """Return the summary of a folder: one line of text per label."""
    good = report.good
    mebibytes = sum(file.bytes for file in report.files) / 2**20
    lines = {"images": f"{len(report.files):,}, {mebibytes:,.1f} MiB"}
    if good:
        lines["sizes"] = _sizes(good)
        lines["modes"] = _counted(file.mode for file in good)
        lines["types"] = _counted(Path(file.path).suffix.lower() for file in report.files)
    unusual = sum(not file.plain for file in good)
    if unusual:
        lines["other"] = f"{unusual:,} not plain 8-bit JPEG or PNG (read by Pillow, which is slower)"
    if report.mean is not None:
        red, green, blue = report.mean.mean((0, 1))
        colour = f"red {red:.0f}, green {green:.0f}, blue {blue:.0f} (of 255)"
        lines["mean"] = f"{colour}, standard deviation {report.deviation:.0f}"
    height, width = sides_of(crop_size)
    too_small = f"a side below {width} pixels"
    if width != height:
        too_small = f"a height below {height} or a width below {width} pixels"
    lines["small"] = f"{len(report.small):,} with {too_small}"
    lines["broken"] = f"{len(report.broken):,}"
    if report.passed_over:
        lines["passed over"] = report.passed_over
    if report.unreadable:
        lines["unreadable"] = f"{len(report.unreadable):,} folders, the first: {report.unreadable[0]}"
    return lines


def _sizes(files: Sequence[Checked]) -> str:
    """Describe the sizes of ``files``: the most common ones, the smallest and the largest."""
    sizes = Counter((file.width, file.height) for file in files)
    common = ", ".join(f"{width}x{height} ({count:,})" for (width, height), count in sizes.most_common(3))
    if len(sizes) > 3:
        common += f" and {len(sizes) - 3} more"
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    smallest, largest = by_area[0], by_area[-1]
    return f"{common}; smallest {smallest[0]}x{smallest[1]}, largest {largest[0]}x{largest[1]}"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in Counter(names).most_common())


def equal_files(group: Group) -> str:
    """Return one line that names some files of ``group``, from each of its folders, and counts the others."""
    rest = len(group) - NAMED
    if rest <= 0:
        return _joined(group)
    places: Counter[str] = Counter()
    order = []
    for name, path in group:
        order.append((places[name], name, path))
        places[name] += 1
    return f"{_joined([(name, path) for _, name, path in sorted(order)[:NAMED]])} and {rest:,} more"


def _joined(group: Group) -> str:
    return " = ".join(f"{path} ({name})" for name, path in group)
