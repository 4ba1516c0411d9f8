"""Report on a dataset before training.

The report covers counts, sizes, modes, files that are broken, small or duplicated, and mean images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from fastcyclegan.config import DataConfig
from fastcyclegan.console import Console
from fastcyclegan.data.dataset_page import page
from fastcyclegan.data.folder_report import (
    FolderReport,
    Group,
    duplicates,
    equal_files,
    examine_folder,
    summary,
)
from fastcyclegan.data.scan import dark_images, find_folders, shared_images
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize, checked_crop_size
from fastcyclegan.tensor_files import fitting_name, write_atomically

LISTED = 20


@dataclass(frozen=True)
class ReportConfig:
    """Check a dataset before training: print a report, and write it as an HTML page with images."""

    #: Dataset folder that contains trainA/ and trainB/ (and testA/ and testB/) or train/A and train/B; or any
    #: single folder of images.
    dir: Annotated[Path | None, tyro.conf.Positional] = None
    #: Folder of images of domain A, given together with --data_B instead of the dataset folder.
    data_A: Path | None = None
    #: Folder of images of domain B, given together with --data_A.
    data_B: Path | None = None
    #: HTML page to write. Default: NAME_report.html in the current folder, where NAME is the name of the
    #: dataset (for a single folder, its parent's name comes first).
    output: Path | None = None
    #: List images as small if a side is shorter than this many pixels (or the height and the width than these
    #: two numbers), because training would enlarge them or reject them.
    crop_size: CropSize = DataConfig.crop_size
    #: Examine images of any size, as far as the memory allows. By default, images above 179 megapixels, those
    #: that take more than 1 GiB to decode, and JPEG files of more than 100 scans are broken. A small
    #: file can claim any amount of memory and time, so only use this for files that you trust.
    allow_decompression_bombs: bool = False

    def __post_init__(self) -> None:
        if (self.dir is None) == (self.data_A is None and self.data_B is None):
            raise UserError("give a folder, or --data_A and --data_B, but not both")
        if (self.data_A is None) != (self.data_B is None):
            raise UserError("--data_A and --data_B must be given together")
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))  # the class is frozen


def folders_of(config: ReportConfig) -> dict[str, Path]:
    """Return the folders to examine, keyed by their names in the report.

    Raises UserError if one is missing.
    """
    if config.dir is not None and config.dir.is_dir():
        parts = ("trainA", "trainB", "train/A", "train/B")
        if not any((config.dir / part).is_dir() for part in parts):
            return {"images": config.dir}
    data = DataConfig(dataroot=config.dir, data_A=config.data_A, data_B=config.data_B)
    dataset = find_folders(data)
    folders = {"train A": dataset.train_A, "train B": dataset.train_B}
    if dataset.test_A is not None:
        folders["test A"] = dataset.test_A
    if dataset.test_B is not None:
        folders["test B"] = dataset.test_B
    return folders


def _log(reports: list[FolderReport], groups: list[Group], crop_size: CropSize, console: Console) -> None:
    for report in reports:
        console.table(f"{report.name}: {report.folder}", summary(report, crop_size))
        _log_first([f"broken: {file.path}: {file.error}" for file in report.broken], console)
        _log_first([f"small: {file.path}: {file.width}x{file.height}" for file in report.small], console)
    for warning in _warnings(reports):
        console.log(warning)
    images = "image" if len(groups) == 1 else "images"
    console.log(f"{len(groups):,} {images} found more than once (identical pixels)")
    _log_first([equal_files(group) for group in groups], console)


def _warnings(reports: list[FolderReport]) -> Iterator[str]:
    """Yield warnings about images that can be read, but are probably not what they should be."""
    for report in reports:
        yield from filter(None, [dark_images(report.folder, report.good)])
    domains = {report.name: report for report in reports if report.name.startswith("train")}
    if len(domains) == 2:
        paths = {name: [Path(file.path) for file in report.files] for name, report in domains.items()}
        folders = {name: report.folder for name, report in domains.items()}
        yield from filter(None, [shared_images(folders, paths)])


def _log_first(lines: list[str], console: Console) -> None:
    for line in lines[:LISTED]:
        console.log(f"    {line}")
    if len(lines) > LISTED:
        console.log(f"and {len(lines) - LISTED:,} more; see the page")


def report_dataset(config: ReportConfig, console: Console) -> bool:
    """Print the report on a dataset and write its HTML page.

    Returns whether training could start on the dataset as it is, that is, whether no file is broken and every
    folder could be read.
    """
    folders = folders_of(config)
    reports = []
    with console:
        for name, folder in folders.items():
            progress = partial(_progress, console, name)
            options = (config.crop_size, progress, config.allow_decompression_bombs)
            reports.append(examine_folder(name, folder, *options))
    groups = duplicates(reports)
    _log(reports, groups, config.crop_size, console)
    title = _title(config.dir, folders)
    output = config.output
    if output is None:
        stem = title.replace(" and ", "2").replace(" ", "_").replace("/", "")
        output = Path(fitting_name(stem, "_report.html", Path()))
    output.parent.mkdir(parents=True, exist_ok=True)
    text = page(title, reports, groups, config.crop_size)
    write_atomically(output, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    console.log(f"page written to {output}")
    return not any(report.broken or report.unreadable for report in reports)


def _title(root: Path | None, folders: Mapping[str, Path]) -> str:
    if root is None:
        return " and ".join(folder.resolve().name for folder in folders.values())
    if list(folders) == ["images"]:
        return " ".join(root.resolve().parts[-2:])  # many datasets contain a trainA
    return root.resolve().name


def _progress(console: Console, name: str, count: int, total: int) -> None:
    if console.is_terminal or count % 1000 == 0:
        console.progress(count, total, f"{name}: {count:,} of {total:,} images")
