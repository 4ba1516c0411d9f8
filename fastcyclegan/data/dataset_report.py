"""A look at a dataset before it is trained on: counts, sizes, modes, files that are broken, small or twice
there, and mean pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan.config import DataConfig
from fastcyclegan.console import Console
from fastcyclegan.data.choose_loader import choose, make_reader
from fastcyclegan.data.image_file import BadPictureError, Fit
from fastcyclegan.data.loader import Job
from fastcyclegan.data.scan import Checked, check_files, find_folders, list_pictures, no_pictures
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import write_atomically

MEAN_SIDE, THUMB_SIDE, THUMBS, LISTED = 128, 112, 36, 20


@dataclass(frozen=True)
class ReportConfig:
    """Look at a dataset before training: as text, and as a page with pictures."""

    dir: Annotated[Path | None, tyro.conf.Positional] = None
    """The dataset: trainA/ trainB/ (testA/ testB/), or train/A train/B; or any one folder of pictures."""
    data_A: Path | None = None
    """Instead of it, with --data_B: the folder of A."""
    data_B: Path | None = None
    """The folder of B."""
    output: Path | None = None
    """The page. Default: NAME_report.html in the current folder, by the name of the dataset (of a single
    folder also its parent's).
    """
    crop_size: int = DataConfig.crop_size
    """Pictures with a side below this are listed as small: training would enlarge them, or refuse to crop
    them.
    """

    def __post_init__(self) -> None:
        if (self.dir is None) == (self.data_A is None and self.data_B is None):
            raise UserError("give a folder, or --data_A and --data_B")
        if (self.data_A is None) != (self.data_B is None):
            raise UserError("--data_A and --data_B go together: both folders are needed")
        if self.crop_size < 1:
            raise UserError(f"crop_size must be at least 1, got {self.crop_size}")


@dataclass
class FolderReport:
    """What is in one folder. ``mean`` is [MEAN_SIDE, MEAN_SIDE, 3], in levels; None where no picture could be
    read.
    """

    name: str
    folder: Path
    files: list[Checked]
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


def folders_of(config: ReportConfig) -> dict[str, Path]:
    """Return the folders to look at by their names in the report. Raises UserError where there is none."""
    if config.dir is not None and config.dir.is_dir():
        parts = ("trainA", "trainB", "train/A", "train/B")
        if not any((config.dir / part).is_dir() for part in parts):
            return {"pictures": config.dir}
    data = DataConfig(dataroot=config.dir, data_A=config.data_A, data_B=config.data_B)
    found = find_folders(data)
    folders = {"train A": found.train_A, "train B": found.train_B}
    if found.test_A is not None:
        folders["test A"] = found.test_A
    if found.test_B is not None:
        folders["test B"] = found.test_B
    return folders


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=85)
    return out.getvalue()


def _thumb(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMB_SIDE, THUMB_SIDE))
    return _encoded(np.asarray(image))


def look_at(name: str, folder: Path, crop_size: int, progress: Callable[[int, int], None]) -> FolderReport:
    """Read every picture of ``folder`` and return what there is. Raises UserError where it holds none."""
    paths = [path.absolute() for path in list_pictures(folder)]
    if not paths:
        raise no_pictures(folder)
    report = FolderReport(name, folder, check_files(paths))
    report.small = [file for file in report.good if min(file.width, file.height) < crop_size]
    every = max(1, len(paths) // THUMBS)
    shown = {str(path) for path in paths[::every][:THUMBS]}
    for file in report.small[:THUMBS]:
        shown.add(file.path)
    total, squares, count = np.zeros((MEAN_SIDE, MEAN_SIDE, 3)), 0.0, 0
    for path, pixels in _pixels_of(report.good):
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


def _pixels_of(files: Sequence[Checked]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the path and the pixels of each of ``files``."""
    cpu = torch.device("cpu")
    reader = make_reader(choose("auto", cpu), Fit(), cpu, lambda text: None)
    for job, row in reader.read(Job(Path(file.path), None, file) for file in files):
        if isinstance(row, BadPictureError):  # it broke since it was checked, a moment ago
            raise UserError(f"{row}: changed while it was looked at")
        yield str(job.path), row.numpy()


def _hash(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    sides = (MEAN_SIDE, MEAN_SIDE)
    image = Image.fromarray(pixels).resize(sides, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image, dtype=np.float64)


Group = list[tuple[str, str]]
"""Files by (folder's name, path)."""


def duplicates(reports: Sequence[FolderReport]) -> list[Group]:
    """Return the groups of files whose pixels are the same, those that cross folders first."""
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


def summary(report: FolderReport, crop_size: int) -> dict[str, str]:
    """Return what is said of a folder, by its label."""
    good = report.good
    mebibytes = sum(file.bytes for file in report.files) / 2**20
    lines = {"pictures": f"{len(report.files):,}, {mebibytes:,.1f} MiB"}
    if good:
        lines["sizes"] = _sizes(good)
        lines["modes"] = _counted(file.mode for file in good)
        lines["files"] = _counted(Path(file.path).suffix.lower() for file in report.files)
    odd = sum(not file.plain for file in good)
    if odd:
        lines["odd"] = f"{odd:,} are no plain 8-bit JPEG or PNG: read by Pillow, which is slower"
    if report.mean is not None:
        red, green, blue = report.mean.mean((0, 1))
        colour = f"red {red:.0f}, green {green:.0f}, blue {blue:.0f} of 255"
        lines["mean"] = f"{colour}, standard deviation {report.deviation:.0f}"
    lines["small"] = f"{len(report.small):,} with a side below {crop_size}"
    lines["broken"] = f"{len(report.broken):,}"
    return lines


def _sizes(files: Sequence[Checked]) -> str:
    """Return the most common sizes of ``files``, the smallest and the largest."""
    sizes = Counter((file.width, file.height) for file in files)
    common = ", ".join(f"{width}x{height} ({count:,})" for (width, height), count in sizes.most_common(3))
    if len(sizes) > 3:
        common += f" and {len(sizes) - 3} more"
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    smallest, largest = by_area[0], by_area[-1]
    return f"{common}; smallest {smallest[0]}x{smallest[1]}, largest {largest[0]}x{largest[1]}"


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in Counter(words).most_common())


def _say(reports: list[FolderReport], twice: list[Group], crop_size: int, console: Console) -> None:
    for report in reports:
        console.table(f"{report.name}: {report.folder}", summary(report, crop_size))
        _say_first([f"broken: {file.path}: {file.error}" for file in report.broken], console)
        _say_first([f"small: {file.path}: {file.width}x{file.height}" for file in report.small], console)
    pictures = "picture" if len(twice) == 1 else "pictures"
    console.say(f"the same pixels more than once: {len(twice):,} {pictures}")
    _say_first([_equal(group) for group in twice], console)


def _say_first(lines: list[str], console: Console) -> None:
    for line in lines[:LISTED]:
        console.say(f"    {line}")
    if len(lines) > LISTED:
        console.say(f"and {len(lines) - LISTED:,} more, see the page")


def _equal(group: Group) -> str:
    return " = ".join(f"{path} ({name})" for name, path in group)


_STYLE = """
body{font:14px sans-serif;margin:2em;max-width:1300px}
table{border-collapse:collapse}
td{padding:2px 1em 2px 0;vertical-align:top}
figure{margin:0 1em 0 0;display:inline-block}
figcaption{font-size:12px;max-width:160px;overflow-wrap:anywhere}
.thumbs{display:flex;flex-wrap:wrap;gap:4px}
.thumbs img{height:112px}
.bad{color:#b00}
"""


def _image(data: bytes, title: str) -> str:
    encoded = base64.b64encode(data).decode()
    name = html.escape(Path(title).name)
    return f'<img src="data:image/jpeg;base64,{encoded}" title="{html.escape(title)}" alt="{name}">'


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def page(title: str, reports: list[FolderReport], twice: list[Group], crop_size: int) -> str:
    """Return the report as one HTML page that needs no other file."""
    named = html.escape(title)
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{named}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{named}</h1>\n<h2>Mean pictures</h2>",
    ]
    for report in reports:
        if report.mean is not None:
            pixels = report.mean.round().clip(0, 255).astype(np.uint8)
            image = _image(_encoded(pixels), f"mean of {report.name}")
            parts.append(_figure(image, report.name))
    if twice:
        parts.append(f'<h2 class="bad">The same pixels more than once ({len(twice):,})</h2><ul>')
        for group in twice:
            parts.append(f"<li>{html.escape(_equal(group))}</li>")
        parts.append("</ul>")
    for report in reports:
        parts += _section(report, crop_size)
    return "\n".join(parts) + "\n</body></html>\n"


def _section(report: FolderReport, crop_size: int) -> Iterator[str]:
    """Yield what the page has of one folder."""
    yield f"<h2>{html.escape(report.name)}: {html.escape(str(report.folder))}</h2><table>"
    for label, text in summary(report, crop_size).items():
        yield f"<tr><td>{label}</td><td>{html.escape(text)}</td></tr>"
    yield "</table>"
    if report.broken:
        yield '<h3 class="bad">Broken</h3><ul>'
        for file in report.broken:
            yield f"<li>{html.escape(file.path)}: {html.escape(file.error)}</li>"
        yield "</ul>"
    if report.small:
        yield f'<h3>Small ({len(report.small):,})</h3><div class="thumbs">'
        for file in report.small[:THUMBS]:
            caption = f"{Path(file.path).name} {file.width}x{file.height}"
            yield _figure(_image(report.thumbs[file.path], file.path), caption)
        yield "</div>"
    others = dict(report.thumbs)
    for file in report.small:
        others.pop(file.path, None)
    if others:
        yield '<h3>Some of them</h3><div class="thumbs">'
        for path, data in others.items():
            yield _image(data, path)
        yield "</div>"


def report_dataset(config: ReportConfig, console: Console) -> bool:
    """Print the report of a dataset and write its page; return whether training could begin as it is, with no
    broken file.
    """
    folders = folders_of(config)
    reports = []
    with console:
        for name, folder in folders.items():
            reports.append(look_at(name, folder, config.crop_size, partial(_progress, console, name)))
    twice = duplicates(reports)
    _say(reports, twice, config.crop_size, console)
    title = _title(config.dir, folders)
    output = config.output
    if output is None:
        stem = title.replace(" and ", "2").replace(" ", "_").replace("/", "")
        output = Path(f"{stem}_report.html")
    output.parent.mkdir(parents=True, exist_ok=True)
    text = page(title, reports, twice, config.crop_size)
    write_atomically(output, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    console.say(f"page: {output}")
    return not any(report.broken for report in reports)


def _title(root: Path | None, folders: Mapping[str, Path]) -> str:
    if root is None:
        return " and ".join(folder.resolve().name for folder in folders.values())
    if list(folders) == ["pictures"]:
        return " ".join(root.resolve().parts[-2:])  # the trainA of this dataset is not that of another
    return root.resolve().name


def _progress(console: Console, name: str, done: int, total: int) -> None:
    if console.is_terminal or done % 1000 == 0:
        console.progress(done, total, f"{name}: {done:,} of {total:,} pictures")
