"""Decide which file each translation is written to, so that no two translations meet and no input is lost."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcyclegan.data.image_file import FORMATS
from fastcyclegan.data.scan import Found, find_files, identity, no_images
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import partial_of

GRID_NAME = "before_after.png"
# The usual limits of file systems.
MAX_NAME, MAX_PATH = 255, 4095
# Suffixes with which --output can only mean an image.
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | {".heic"}


@dataclass(frozen=True)
class Output:
    """An image to translate, and the file to write its translation to."""

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """The name that determines the masks of dropout."""
        return self.source.name

    @property
    def shown(self) -> str:
        """The name in lines."""
        return str(self.source)


@dataclass(frozen=True)
class Plan:
    """What is written: the translations, in the order of the images' names, and the grid, if there is one.

    ``found`` is what was found in the input folder, or None if the input is a file.
    """

    outputs: list[Output]
    grid: Path | None = None
    found: Found | None = None

    @property
    def numbered(self) -> str:
        """One line about the translations that have a number in their names, or "" if there are none."""
        numbered = [
            output
            for output in self.outputs
            if re.fullmatch(rf"{re.escape(output.source.name)}-\d+\.png", output.target.name, re.DOTALL)
        ]
        if not numbered:
            return ""
        first = numbered[0]
        images = "1 translation has" if len(numbered) == 1 else f"{len(numbered)} translations have"
        return (
            f"{images} a number because others have the name: {first.source.name} becomes {first.target.name}"
        )


def plan_outputs(source: Path, output: Path, grid: bool = False) -> Plan:
    """Return the files to write for the image or the folder of images ``source``.

    ``output`` is a folder, or the PNG file of a single image. Every image has its own file, also on disks
    that ignore case. Its name is that of the image with the suffix .png. Where these meet, the image's suffix
    is kept (a.jpg.png, a.tif.png), and where this meets another one, too, a number is added (a.jpg-2.png).

    Raises UserError if the input is missing or has no images, and if an output is an input image, a folder or
    in a file, or has too long a name.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if _is_file(source, output):
        plan = _of_one_file(source, output, grid)
    else:
        root, sources, found = source.parent, [source], None
        if source.is_dir():
            found = find_files(source)
            root, sources = source, _sources_of(found, output)
        plan = replace(_in_folder(root, sources, output, grid), found=found)
    _check(plan)
    return plan


def _is_file(source: Path, output: Path) -> bool:
    """Return whether ``output`` is the file of a single translation. Raises UserError if it is unusable."""
    if output.is_dir():
        return False
    if source.is_dir() or output.suffix.lower() not in IMAGE_SUFFIXES:
        if os.path.lexists(output):
            raise UserError(f"{output}: not a folder, so no images can be written to it")
        if output.suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"{output}: the name of an image, but --output must be a folder for {source}")
        return False
    if output.suffix.lower() != ".png":
        raise UserError(f"{output}: translations are PNG files; use {output.with_suffix('.png')}")
    return True


def _sources_of(found: Found, output: Path) -> list[Path]:
    """Return the images in a folder, without earlier translations if ``output`` is inside the folder."""
    folder, images = found.folder, found.images
    if not images:
        raise no_images(found)
    written = _real(output)
    if _real(folder) == written:
        raise UserError(
            f"{output}: the folder of the images, where the translations would be taken for images next time:"
            " choose another --output"
        )
    if not _real(folder).is_relative_to(written):
        images = [image for image in images if not _real(image).is_relative_to(written)]
    if not images:
        raise UserError(f"{folder}: no images to translate, except in {output}")
    return images


def _real(path: Path) -> Path:
    """Return ``path`` without symbolic links. Unlike Path.resolve, this does not fail if they form a loop."""
    return Path(os.path.realpath(path))


def _of_one_file(source: Path, output: Path, grid: bool) -> Plan:
    if not grid:
        return Plan([Output(source, output)])
    names = _Names(output.parent)
    return Plan([Output(source, output)], output.parent / names.grid({names.key(Path(output.name))}))


class _Names:
    """Names relative to the folder of the outputs, and what they lead to.

    Two names lead to the same file if they differ only in case or in how letters with accents are encoded,
    which some disks ignore, or if folders of the output are links to each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parents: dict[Path, Path] = {}

    def key(self, name: Path) -> str:
        """Return a text that is the same for names that lead to the same file."""
        if name.parent not in self._parents:
            self._parents[name.parent] = _real(self.folder / name.parent)
        path = str(self._parents[name.parent] / name.name)
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())

    def grid(self, taken: set[str]) -> Path:
        """Return the name of the grid, which is not among the keys ``taken``."""
        stem = Path(GRID_NAME).stem
        names = itertools.chain([GRID_NAME], (f"{stem}-{n}.png" for n in itertools.count(2)))
        return self._first_free(map(Path, names), taken)

    def of_images(self, images: Sequence[Path], taken: set[str]) -> dict[Path, Path]:
        """Return the name of each image's translation, which is not among the keys ``taken``."""
        taken = set(taken)
        simple = {image: image.with_suffix(".png") for image in images}
        count = Counter(map(self.key, simple.values()))
        names = {}
        for image, name in simple.items():
            if count[self.key(name)] == 1 and self.key(name) not in taken:
                names[image] = name
        taken |= set(map(self.key, names.values()))
        for image in sorted(simple.keys() - names.keys(), key=Path.as_posix):
            longer = (image.with_name(f"{image.name}-{n}.png") for n in itertools.count(2))
            candidates = itertools.chain([image.with_name(f"{image.name}.png")], longer)
            names[image] = self._first_free(candidates, taken)
            taken.add(self.key(names[image]))
        return names

    def _first_free(self, names: Iterator[Path], taken: set[str]) -> Path:
        return next(name for name in names if self.key(name) not in taken)


def _in_folder(root: Path, sources: Sequence[Path], output: Path, grid: bool) -> Plan:
    names = _Names(output)
    images = [source.relative_to(root) for source in sources]
    folders: set[Path] = set()
    for image in images:
        folders.update(image.parents)
    folders.discard(Path())
    taken = set(map(names.key, folders))
    grid_file = None
    if grid:
        grid_name = names.grid(taken)
        taken.add(names.key(grid_name))
        grid_file = output / grid_name
    targets = names.of_images(images, taken)
    outputs = [Output(source, output / targets[image]) for source, image in zip(sources, images, strict=True)]
    return Plan(outputs, grid_file)


def _check(plan: Plan) -> None:
    """Raise UserError if a file of ``plan`` cannot be written, or must not be."""
    inputs = {identity(output.source) for output in plan.outputs}
    files = [(output.target, f"the translation of {output.source}") for output in plan.outputs]
    if plan.grid is not None:
        files.append((plan.grid, "the grid"))
    for target, content in files:
        if identity(target) in inputs:
            raise UserError(f"{target} is one of the input images: choose another --output")
        if target.is_dir():
            raise UserError(f"{target}: a folder, where {content} must be written: choose another --output")
        if target.exists() and not target.is_file():
            raise UserError(f"{target}: not a regular file, where {content} must be written")
        # A file is written under a longer, temporary name first.
        partial = partial_of(target)
        name = max(len(os.fsencode(file.name)) for file in (target, partial))
        path = max(len(os.fsencode(file)) for file in (target, partial))
        if name > MAX_NAME or path > MAX_PATH:
            raise UserError(f"{content} would have too long a name: shorten the image's name or --output")
    for folder in sorted({target.parent for target, _ in files}):
        _check_folder(folder)


def _check_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` cannot be created because of a file."""
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise UserError(f"{path}: not a folder, so no images can be written to it")
            return
