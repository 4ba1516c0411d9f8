"""A look at a dataset before it is trained on: counts, sizes, modes, files that are broken, small or twice
there, and mean pictures.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan.config import DataConfig
from fastcyclegan.console import Console
from fastcyclegan.data.choose_loader import choose, make_reader
from fastcyclegan.data.image_file import SUFFIXES, BadPictureError, Fit
from fastcyclegan.data.loader import Job
from fastcyclegan.data.scan import Checked, check_files, find_folders, list_pictures
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
        layouts = any((config.dir / name).is_dir() for name in ("trainA", "trainB", "train/A", "train/B"))
        if not layouts:
            return {"pictures": config.dir}
    data = DataConfig(dataroot=config.dir, data_A=config.data_A, data_B=config.data_B)
    found = find_folders(data)
    named = {
        "train A": found.train_A,
        "train B": found.train_B,
        "test A": found.test_A,
        "test B": found.test_B,
    }
    return {name: folder for name, folder in named.items() if folder is not None}


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
        raise UserError(
            f"{folder}: no pictures in it (looked for {', '.join(sorted(s[1:] for s in SUFFIXES))})"
        )
    report = FolderReport(name, folder, check_files(paths))
    report.small = [file for file in report.good if min(file.width, file.height) < crop_size]
    shown = set(paths[:: max(1, len(paths) // THUMBS)][:THUMBS]) | {
        Path(file.path) for file in report.small[:THUMBS]
    }
    total, squares, count = np.zeros((MEAN_SIDE, MEAN_SIDE, 3)), 0.0, 0
    cpu = torch.device("cpu")
    reader = make_reader(choose("auto", cpu), Fit(), cpu, lambda text: None)
    jobs = (Job(path, None, file) for path, file in zip(paths, report.files, strict=True) if not file.error)
    for done, (job, row) in enumerate(reader.read(jobs), 1):
        if isinstance(row, BadPictureError):  # it broke since it was checked, a moment ago
            raise UserError(f"{row}: changed while it was looked at")
        pixels = row.numpy()
        report.hashes[str(job.path)] = hashlib.sha256(
            repr(pixels.shape).encode() + pixels.tobytes()
        ).hexdigest()
        square = _square(row)
        total += square
        squares += float((square**2).mean())
        count += 1
        if job.path in shown:
            report.thumbs[str(job.path)] = _thumb(pixels)
        progress(done, len(paths))
    if count:
        report.mean = total / count
        report.deviation = float(np.sqrt(max(squares / count - (report.mean.mean()) ** 2, 0.0)))
    return report


def _square(pixels: Tensor) -> NDArray[np.float64]:
    image = Image.fromarray(pixels.numpy()).resize(
        (MEAN_SIDE, MEAN_SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0
    )
    return np.asarray(image, dtype=np.float64)


def duplicates(reports: Sequence[FolderReport]) -> list[list[tuple[str, str]]]:
    """Return the groups of (folder's name, path) whose pixels are the same, those that cross folders
    first."""
    groups: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for report in reports:
        for path, digest in report.hashes.items():
            groups[digest].append((report.name, path))
    twice = [group for group in groups.values() if len(group) > 1]
    return sorted(twice, key=lambda group: (len({name for name, _ in group}) == 1, group))


def summary(report: FolderReport, crop_size: int) -> dict[str, str]:
    """Return what is said of a folder, by its label."""
    good = report.good
    lines = {
        "pictures": f"{len(report.files):,}, {sum(file.bytes for file in report.files) / 2**20:,.1f} MiB"
    }
    if good:
        sizes = Counter((file.width, file.height) for file in good)
        common = ", ".join(f"{w}x{h} ({n:,})" for (w, h), n in sizes.most_common(3))
        areas = sorted((file.width * file.height, file.width, file.height) for file in good)
        smallest, largest = (f"{areas[at][1]}x{areas[at][2]}" for at in (0, -1))
        lines["sizes"] = (
            f"{common}{f' and {len(sizes) - 3} more' if len(sizes) > 3 else ''}; smallest {smallest}, largest"
            f" {largest}"
        )
        lines["modes"] = ", ".join(
            f"{mode} {n:,}" for mode, n in Counter(file.mode for file in good).most_common()
        )
        kinds = Counter(Path(file.path).suffix.lower() for file in report.files)
        lines["files"] = ", ".join(f"{suffix} {n:,}" for suffix, n in kinds.most_common())
    if odd := sum(not file.plain for file in good):
        lines["odd"] = f"{odd:,} are no plain 8-bit JPEG or PNG: read by Pillow, which is slower"
    if report.mean is not None:
        red, green, blue = report.mean.mean((0, 1))
        lines["mean"] = (
            f"red {red:.0f}, green {green:.0f}, blue {blue:.0f} of 255, standard deviation"
            f" {report.deviation:.0f}"
        )
    lines["small"] = f"{len(report.small):,} with a side below {crop_size}"
    lines["broken"] = f"{len(report.broken):,}"
    return lines


def _listed(lines: list[str]) -> list[str]:
    return (
        lines
        if len(lines) <= LISTED
        else [*lines[:LISTED], f"and {len(lines) - LISTED:,} more, see the page"]
    )


def _say(
    reports: list[FolderReport], twice: list[list[tuple[str, str]]], crop_size: int, console: Console
) -> None:
    for report in reports:
        console.table(f"{report.name}: {report.folder}", summary(report, crop_size))
        for line in _listed([f"    broken: {file.path}: {file.error}" for file in report.broken]):
            console.say(line)
        for line in _listed([f"    small: {file.path}: {file.width}x{file.height}" for file in report.small]):
            console.say(line)
    console.say(f"the same pixels more than once: {len(twice):,} picture{'s' * (len(twice) != 1)}")
    for line in _listed(["    " + " = ".join(f"{path} ({name})" for name, path in group) for group in twice]):
        console.say(line)


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
    return (
        f'<img src="data:image/jpeg;base64,{encoded}" title="{html.escape(title)}"'
        f' alt="{html.escape(Path(title).name)}">'
    )


def page(title: str, reports: list[FolderReport], twice: list[list[tuple[str, str]]], crop_size: int) -> str:
    """Return the report as one HTML page that needs no other file."""
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    ]
    parts.append(f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n<h2>Mean pictures</h2>")
    for report in reports:
        if report.mean is not None:
            picture = _image(
                _encoded(report.mean.round().clip(0, 255).astype(np.uint8)), f"mean of {report.name}"
            )
            parts.append(f"<figure>{picture}<figcaption>{html.escape(report.name)}</figcaption></figure>")
    thumbs = {path: data for report in reports for path, data in report.thumbs.items()}
    if twice:
        parts.append(f'<h2 class="bad">The same pixels more than once ({len(twice):,})</h2><ul>')
        for group in twice:
            parts.append(
                "<li>"
                + " = ".join(f"{html.escape(path)} ({html.escape(name)})" for name, path in group)
                + "</li>"
            )
        parts.append("</ul>")
    for report in reports:
        parts.append(f"<h2>{html.escape(report.name)}: {html.escape(str(report.folder))}</h2><table>")
        parts += [
            f"<tr><td>{label}</td><td>{html.escape(text)}</td></tr>"
            for label, text in summary(report, crop_size).items()
        ]
        parts.append("</table>")
        if report.broken:
            parts.append('<h3 class="bad">Broken</h3><ul>')
            parts += [
                f"<li>{html.escape(file.path)}: {html.escape(file.error)}</li>" for file in report.broken
            ]
            parts.append("</ul>")
        if report.small:
            parts.append(f'<h3>Small ({len(report.small):,})</h3><div class="thumbs">')
            for file in report.small[:THUMBS]:
                caption = f"{html.escape(Path(file.path).name)} {file.width}x{file.height}"
                image = _image(thumbs[file.path], file.path)
                parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
            parts.append("</div>")
        small = {file.path for file in report.small}
        others = [_image(data, path) for path, data in report.thumbs.items() if path not in small]
        if others:
            parts += ['<h3>Some of them</h3><div class="thumbs">', *others, "</div>"]
    return "\n".join(parts) + "\n</body></html>\n"


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
    if config.dir is None:
        title = " and ".join(folder.resolve().name for folder in folders.values())
    elif list(folders) == ["pictures"]:
        title = " ".join(config.dir.resolve().parts[-2:])  # the trainA of this dataset is not that of another
    else:
        title = config.dir.resolve().name
    output = config.output or Path(
        f"{title.replace(' and ', '2').replace(' ', '_').replace('/', '')}_report.html"
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    text = page(title, reports, twice, config.crop_size)
    write_atomically(output, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    console.say(f"page: {output}")
    return not any(report.broken for report in reports)


def _progress(console: Console, name: str, done: int, total: int) -> None:
    if console.is_terminal or done % 1000 == 0:
        console.progress(done, total, f"{name}: {done:,} of {total:,} pictures")
