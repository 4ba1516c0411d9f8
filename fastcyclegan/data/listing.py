"""List the image files of a folder and its subfolders, and count the other files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.data.image_file import SUFFIXES
from fastcyclegan.errors import UserError, system_reason

LISTED_SUFFIXES = 10


@dataclass(frozen=True)
class Found:
    """The images in a folder, sorted by name, and the numbers of its other files by suffix.

    ``unreadable`` contains the subfolders that could not be read, with the reasons.
    """

    folder: Path
    images: list[Path]
    others: Counter[str]
    unreadable: list[str]

    @property
    def passed_over(self) -> str:
        """One line about the files that are no images by their suffixes, and unreadable folders, or ""."""
        parts = []
        count = self.others.total()
        if count:
            files = "1 file is" if count == 1 else f"{count:,} files are"
            parts.append(f"{files} passed over, by suffix: {self.counted_others()}")
        if self.unreadable:
            folders = "1 folder" if len(self.unreadable) == 1 else f"{len(self.unreadable):,} folders"
            parts.append(f"{folders} cannot be read: {self.unreadable[0]}")
        if not parts:
            return ""
        return f"{self.folder}: {'; '.join(parts)}"

    def require_readable(self, skip: bool) -> None:
        """Raise UserError if there are unreadable subfolders, unless ``skip`` is set."""
        if self.unreadable and not skip:
            raise UserError(
                f"the folder {self.unreadable[0]} cannot be read; pass --skip_bad_images to leave it out"
            )

    def counted_others(self) -> str:
        """Return the most common suffixes of the other files, and their numbers."""
        most = self.others.most_common(LISTED_SUFFIXES)
        listed = [f"{suffix} ({count:,})" for suffix, count in most]
        rest = self.others.total() - sum(count for _, count in most)
        if rest:
            listed.append(f"others ({rest:,})")
        return ", ".join(listed)


def find_files(folder: Path) -> Found:
    """Find the images in ``folder`` and its subfolders, which are the files with the suffix of an image.

    Symbolic links are followed, but no folder is visited twice. Names that begin with a dot are skipped.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    unreadable: list[str] = []
    seen: set[Path] = set()

    def note(error: OSError) -> None:
        unreadable.append(f"{error.filename} ({system_reason(error)})")

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        identity = Path(parent).resolve()
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                images.append(Path(parent, name))
            else:
                others[suffix if suffix else "none"] += 1
    images.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Found(folder, images, others, unreadable)


def list_images(folder: Path, limit: int | None = None) -> list[Path]:
    """Return the images that ``find_files`` finds in ``folder``, at most ``limit`` of them."""
    return find_files(folder).images[:limit]


def no_images(found: Found) -> UserError:
    """Return the error to raise if a folder contains no images."""
    suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))
    other = ""
    if found.others:
        other = f"; found: {found.counted_others()}"
    if found.unreadable:
        other += f"; cannot be read: {found.unreadable[0]}"
    return UserError(f"{found.folder}: contains no images (looked for {suffixes}{other})")
