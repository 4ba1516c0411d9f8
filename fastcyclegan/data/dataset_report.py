"""Report on a dataset before training.

The report covers counts, sizes, modes, files that are broken, small or duplicated, and mean images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

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
from fastcyclegan.data.folders import (
    LAYOUTS,
    Folders,
    aligned_folders,
    has_train,
    need_folder,
    two_folders,
    wrong_layout,
)
from fastcyclegan.data.image_file import SUFFIXES
from fastcyclegan.data.pair_report import PairReport, examine_pairs, pair_findings, pair_summary, pairs_of
from fastcyclegan.data.pairs import Pairs
from fastcyclegan.data.scan import dark_images, shared_images
from fastcyclegan.errors import UserError
from fastcyclegan.settings.crop_size import CropSize, checked_crop_size
from fastcyclegan.settings.data import DataConfig, Layout
from fastcyclegan.tensor_files import fitting_name, write_atomically

LISTED = 20


@dataclass(frozen=True)
class ReportConfig:
    """Check a dataset before training: print a report, and write it as an HTML page with images."""

    #: Dataset folder that contains trainA/ and trainB/ (and testA/ and testB/) or train/A and train/B; or
    #: train/ (and val/ and test/) with pairs side by side in each file; or any single folder of images.
    dir: Annotated[Path | None, tyro.conf.Positional] = None
    #: Folder of images of domain A, given together with --data_B instead of the dataset folder.
    data_A: Path | None = None
    #: Folder of images of domain B, given together with --data_A.
    data_B: Path | None = None
    #: How the images are laid out. aligned: pairs, side by side in one file (A on the left) or in two folders
    #: with images of the same names; single: images without pairs, in train/ (and val/ and test/) or any
    #: folder. Default: unaligned for two folders, and aligned for images in train/.
    dataset_mode: Layout | None = None
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
        if self.dataset_mode == "single" and self.data_A is not None:
            raise UserError("--data_A and --data_B are two domains; for single images, give one folder")
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))  # the class is frozen


@dataclass(frozen=True)
class Examined:
    """The folders to examine, by their names in the report, and where the pairs are.

    ``halved`` tells whether each file holds a pair. ``pairs`` contains those of two folders, by the name of
    their split. The folders of the split train are then called train A and train B.
    """

    folders: dict[str, Path]
    halved: bool = False
    pairs: dict[str, Pairs] = field(default_factory=dict)


def folders_of(config: ReportConfig) -> Examined:
    """Return what to examine.

    Raises UserError if a folder is missing, or if there are no two domains where they should be.
    """
    is_in_train = config.dataset_mode == "aligned" and config.dir is not None and has_train(config.dir)
    if config.dataset_mode != "single" and not is_in_train:  # training with aligned prefers train, too
        folders = two_folders(DataConfig(dataroot=config.dir, data_A=config.data_A, data_B=config.data_B))
        if folders is not None:
            return _two_domains(folders, config.dataset_mode == "aligned")
    root, mode = config.dir, config.dataset_mode
    assert root is not None
    need_folder(root)
    if mode == "unaligned":
        raise wrong_layout(root, "unaligned", LAYOUTS)
    if mode is None and has_train(root) and _has_images(root / "train"):
        mode = "aligned"
    if mode in ("aligned", "single") and has_train(root):
        return Examined(aligned_folders(root), mode == "aligned")
    return Examined({"images": root}, mode == "aligned")


def _two_domains(dataset: Folders, is_aligned: bool) -> Examined:
    folders = {"train A": dataset.train_A, "train B": dataset.train_B}
    if dataset.test_A is not None:
        folders["test A"] = dataset.test_A
    if dataset.test_B is not None:
        folders["test B"] = dataset.test_B
    pairs = {}
    if is_aligned:
        for split in ("train", "test"):
            if {f"{split} A", f"{split} B"} <= folders.keys():
                pairs[split] = pairs_of(folders[f"{split} A"], folders[f"{split} B"])
    return Examined(folders, pairs=pairs)


def _has_images(folder: Path) -> bool:
    """Return whether there are images in ``folder`` itself, rather than in its subfolders."""
    return any(path.suffix.lower() in SUFFIXES and path.is_file() for path in folder.iterdir())


def _log(
    reports: list[FolderReport],
    pairs: list[PairReport],
    groups: list[Group],
    crop_size: CropSize,
    console: Console,
) -> None:
    for report in reports:
        console.table(f"{report.name}: {report.folder}", summary(report, crop_size))
        _log_first([f"broken: {file.path}: {file.error}" for file in report.broken], console)
        _log_first([f"small: {file.path}: {report.described_size(file)}" for file in report.small], console)
        _log_first([f"same: {path}" for path in report.same], console)
    for of_split in pairs:
        console.table(f"pairs of {of_split.name} A and {of_split.name} B:", pair_summary(of_split))
        for kind, lines in pair_findings(of_split).items():
            _log_first([f"{kind}: {line}" for line in lines], console)
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

    Returns whether training could start on the dataset as it is, that is, whether no file is broken, every
    folder could be read and, if there must be pairs, every image has a partner.
    """
    examined = folders_of(config)
    if examined.halved and config.dataset_mode is None:
        console.log(f"{config.dir}: pairs side by side (--dataset_mode single takes them for single images)")
    reports = {}
    with console:
        for name, folder in examined.folders.items():
            progress = partial(_progress, console, name)
            options = (config.crop_size, progress, config.allow_decompression_bombs, examined.halved)
            reports[name] = examine_folder(name, folder, *options)
    pairs = []
    for split, of_split in examined.pairs.items():
        pairs.append(examine_pairs(split, of_split, reports[f"{split} A"], reports[f"{split} B"]))
    found = list(reports.values())
    groups = duplicates(found)
    _log(found, pairs, groups, config.crop_size, console)
    title = _title(config.dir, examined.folders)
    text = page(title, found, pairs, groups, config.crop_size)
    _write_page(text, title, config.output, console)
    is_whole = not any(report.broken or report.unreadable for report in found)
    return is_whole and not any(of_split.unpaired for of_split in pairs)


def _write_page(text: str, title: str, output: Path | None, console: Console) -> None:
    """Write the page to ``output``, or to a file named after its ``title`` if None."""
    if output is None:
        stem = title.replace(" and ", "2").replace(" ", "_").replace("/", "")
        output = Path(fitting_name(stem, "_report.html", Path()))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
    console.log(f"page written to {output}")


def _title(root: Path | None, folders: Mapping[str, Path]) -> str:
    if root is None:
        return " and ".join(folder.resolve().name for folder in folders.values())
    if list(folders) == ["images"]:
        return " ".join(root.resolve().parts[-2:])  # many datasets contain a trainA
    return root.resolve().name


def _progress(console: Console, name: str, count: int, total: int) -> None:
    if console.is_terminal or count % 1000 == 0:
        console.progress(count, total, f"{name}: {count:,} of {total:,} images")
