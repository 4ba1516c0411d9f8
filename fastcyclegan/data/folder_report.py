"""Examine one folder of a dataset.

The report covers counts, sizes, modes, files that are broken, small or duplicated, and the mean image. For
files that hold a pair side by side, it covers the two images of each.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.choose_loader import choose, make_reader
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.halves import half_size, why_not_halves
from fastcyclegan.data.image_file import BadImageError, Size
from fastcyclegan.data.listing import find_files, no_images
from fastcyclegan.data.loader import Job
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize, sides_of

MEAN_SIDE, THUMB_SIDE, THUMBS = 128, 112, 36

# How many files with equal pixels are named.
NAMED = 5


@dataclass
class Mean:
    """The mean of images of any sizes."""

    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros((MEAN_SIDE, MEAN_SIDE, 3)))
    squares: float = 0.0
    count: int = 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        square = _square(pixels)
        self.total += square
        self.squares += float((square**2).mean())
        self.count += 1

    @property
    def image(self) -> NDArray[np.float64]:
        """The mean image [MEAN_SIDE, MEAN_SIDE, 3] in 8-bit levels."""
        return self.total / self.count

    @property
    def deviation(self) -> float:
        """The standard deviation of all values of the images, in 8-bit levels."""
        return float(np.sqrt(max(self.squares / self.count - self.image.mean() ** 2, 0.0)))


@dataclass
class FolderReport:
    """The findings about one folder of images.

    ``halved`` tells whether each file holds a pair side by side. ``passed_over`` lists the numbers of files
    that are no images, by suffix, and ``unreadable`` the subfolders that could not be read. ``means``
    contains the mean of all images by the name "", or those of A and B if ``halved``; it is empty if no image
    could be read. ``same`` lists the files whose two halves have equal pixels.
    """

    name: str
    folder: Path
    files: list[Checked]
    halved: bool = False
    passed_over: str = ""
    unreadable: list[str] = field(default_factory=list)
    small: list[Checked] = field(default_factory=list)
    means: dict[str, Mean] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)
    thumbs: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[Checked]:
        return [file for file in self.files if file.error]

    @property
    def good(self) -> list[Checked]:
        return [file for file in self.files if not file.error]

    def size_of(self, file: Checked) -> Size:
        """Return the (width, height) of the image in ``file``, or of each of the two."""
        return half_size((file.width, file.height), "left" if self.halved else None)

    def described_size(self, file: Checked) -> str:
        """Return the size of the image in ``file``, or of each of the two, as text."""
        width, height = self.size_of(file)
        return f"{width}x{height} (half of {file.width}x{height})" if self.halved else f"{width}x{height}"


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
    halved: bool = False,
) -> FolderReport:
    """Read every image in ``folder`` and report on it. Raises UserError if it contains no images.

    ``any_size`` is as in ``image_file.open_image``. If ``halved``, each file holds a pair side by side, and
    one of odd width is broken.
    """
    found = find_files(folder)
    if not found.images:
        raise no_images(found)
    paths = [path.absolute() for path in found.images]
    files = check_files(paths, any_size=any_size)
    if halved:
        files = [_checked_halves(file) for file in files]
    report = FolderReport(name, folder, files, halved)
    report.passed_over, report.unreadable = found.counted_others(), found.unreadable
    height, width = sides_of(crop_size)
    sizes = [(file, *report.size_of(file)) for file in report.good]
    report.small = [file for file, its_width, its_height in sizes if its_width < width or its_height < height]
    every = max(1, len(paths) // THUMBS)
    shown = {str(path) for path in paths[::every][:THUMBS]}
    for file in report.small[:THUMBS]:
        shown.add(file.path)
    for count, (path, pixels) in enumerate(_pixels_of(report.good, Fit(any_size=any_size)), start=1):
        report.hashes[path] = _hash(pixels)
        if path in shown:
            report.thumbs[path] = _thumb(pixels)
        _add_images(report, path, pixels)
        progress(count, len(paths))
    return report


def _checked_halves(file: Checked) -> Checked:
    """Return ``file``, with an error if it is whole but cannot be cut into two halves."""
    if file.error:
        return file
    return replace(file, error=why_not_halves((file.width, file.height)))


def _add_images(report: FolderReport, path: str, pixels: NDArray[np.uint8]) -> None:
    """Add the image in a file, or the two, to the means of ``report``."""
    images = {"": pixels}
    if report.halved:
        left, right = np.hsplit(pixels, 2)
        images = {"A": left, "B": right}
        if np.array_equal(left, right):
            report.same.append(path)
    for name, image in images.items():
        report.means.setdefault(name, Mean()).add(image)


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
    if report.halved:
        lines = {"pairs": f"{lines['images']}; side by side, A on the left"}
    if good:
        lines["sizes"] = _sizes(good)
        lines["modes"] = _counted(file.mode for file in good)
        lines["types"] = _counted(Path(file.path).suffix.lower() for file in report.files)
    unusual = sum(not file.plain for file in good)
    if unusual:
        lines["other"] = f"{unusual:,} not plain 8-bit JPEG or PNG (read by Pillow, which is slower)"
    for name, mean in report.means.items():
        red, green, blue = mean.image.mean((0, 1))
        colour = f"red {red:.0f}, green {green:.0f}, blue {blue:.0f} (of 255)"
        lines[f"mean {name}".strip()] = f"{colour}, standard deviation {mean.deviation:.0f}"
    lines["small"] = f"{len(report.small):,} with {_too_small(report, crop_size)}"
    if report.halved:
        lines["same"] = f"{len(report.same):,} with two halves of identical pixels"
    lines["broken"] = f"{len(report.broken):,}"
    if report.passed_over:
        lines["passed over"] = report.passed_over
    if report.unreadable:
        lines["unreadable"] = f"{len(report.unreadable):,} folders, the first: {report.unreadable[0]}"
    return lines


def _too_small(report: FolderReport, crop_size: CropSize) -> str:
    """Describe the images that are small."""
    height, width = sides_of(crop_size)
    too_small = f"a side below {width} pixels"
    if width != height:
        too_small = f"a height below {height} or a width below {width} pixels"
    return f"halves that have {too_small}" if report.halved else too_small


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
