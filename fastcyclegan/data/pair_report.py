"""Examine the pairs of two folders: images without a partner, of different sizes, and that are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.folder_report import FolderReport
from fastcyclegan.data.listing import list_images
from fastcyclegan.data.pairs import Pairs, find_pairs


@dataclass(frozen=True)
class PairReport:
    """The findings about the pairs of two folders.

    ``unequal`` contains the pairs of readable images that differ in size, and ``same`` those with equal
    pixels.
    """

    name: str
    pairs: Pairs
    unequal: list[tuple[Checked, Checked]]
    same: list[tuple[Checked, Checked]]

    @property
    def unpaired(self) -> list[Path]:
        """The images without a partner."""
        return [*self.pairs.only_A, *self.pairs.only_B]


def pairs_of(folder_A: Path, folder_B: Path) -> Pairs:
    """Return the pairs of two folders, with absolute paths. Raises UserError if a partner is ambiguous."""
    folder_A, folder_B = folder_A.absolute(), folder_B.absolute()
    return find_pairs(folder_A, list_images(folder_A), folder_B, list_images(folder_B))


def examine_pairs(name: str, pairs: Pairs, A: FolderReport, B: FolderReport) -> PairReport:
    """Report on ``pairs``, whose images the reports on their folders cover."""
    good = {file.path: file for report in (A, B) for file in report.good}
    hashes = A.hashes | B.hashes
    unequal, same = [], []
    for path_A, path_B in zip(pairs.A, pairs.B, strict=True):
        a, b = good.get(str(path_A)), good.get(str(path_B))
        if a is None or b is None:  # broken, as the report on its folder tells
            continue
        if (a.width, a.height) != (b.width, b.height):
            unequal.append((a, b))
        elif hashes[a.path] == hashes[b.path]:
            same.append((a, b))
    return PairReport(name, pairs, unequal, same)


def pair_summary(report: PairReport) -> dict[str, str]:
    """Return the summary of a report: one line of text per label."""
    only_A, only_B = len(report.pairs.only_A), len(report.pairs.only_B)
    unequal = f"{len(report.unequal):,} of different sizes"
    if report.unequal:
        unequal += ", which need --preprocess resize_and_crop, the default"
    return {
        "pairs": f"{len(report.pairs.A):,}",
        "unpaired": f"{only_A:,} of A and {only_B:,} of B without an image of the same name",
        "unequal": unequal,
        "same": f"{len(report.same):,} of identical pixels",
    }


def pair_findings(report: PairReport) -> dict[str, list[str]]:
    """Return one line per finding, by the kind of finding: unpaired, unequal and same."""
    return {
        "unpaired": [str(path) for path in report.unpaired],
        "unequal": [
            f"{a.path}: {a.width}x{a.height}, {b.path}: {b.width}x{b.height}" for a, b in report.unequal
        ],
        "same": [f"{a.path} = {b.path}" for a, b in report.same],
    }
