"""Join the images of two folders into files that hold pairs side by side, A on the left."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastcyclegan.console import Console, QuietConsole
from fastcyclegan.data.background import ReadingThreads, result_of
from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.choose_loader import default_threads
from fastcyclegan.data.folders import need_folder
from fastcyclegan.data.image_file import BadImageError, Size, open_image
from fastcyclegan.data.listing import find_files, no_images
from fastcyclegan.data.pairs import Pairs, find_pairs
from fastcyclegan.data.scan import dark_images
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import remove_stale_partials, write_atomically

SPLITS = ("train", "val", "test")
"""The folders of a dataset of pairs. Training reads the first; its samples come from one of the others."""
LISTED = 20
# zlib's fastest level. Files of photographs are hardly larger than those of its slower ones.
_COMPRESSION = 1


@dataclass(frozen=True)
class _Options:
    """What ``make_aligned`` was asked for, with its folders as paths, and where it prints."""

    A: Path
    B: Path
    output: Path
    split: str | None
    num_imgs: int | None
    use_AB: bool
    skip_unpaired: bool
    skip_bad_images: bool
    overwrite: bool
    any_size: bool
    console: Console

    def list_all(self, lines: Sequence[str]) -> None:
        """Print the first of ``lines``, and the number of the others."""
        for line in lines[:LISTED]:
            self.console.log(line)
        if len(lines) > LISTED:
            self.console.log(f"and {len(lines) - LISTED:,} more")


@dataclass(frozen=True)
class _Pair:
    """Two images, the file to write, and the folder that it is counted in: that of its split."""

    A: Path
    B: Path
    file: Path
    folder: Path


def make_aligned(
    A: Path | str,
    B: Path | str,
    output: Path | str,
    *,
    split: str | None = None,
    num_imgs: int | None = None,
    use_AB: bool = False,
    skip_unpaired: bool = False,
    skip_bad_images: bool = False,
    overwrite: bool = False,
    allow_decompression_bombs: bool = False,
    console: Console | None = None,
) -> dict[Path, int]:
    """Join the images of the folders ``A`` and ``B`` into PNG files of pairs in ``output``.

    Pairs are found by their names, as ``find_pairs`` does. If they are in folders train, val or test, paths
    are kept; otherwise, the files are written to the folder ``split`` of ``output``, by default train.
    ``use_AB`` takes only images whose names end in _A (in A) and in _B (in B), ``num_imgs`` is the maximum
    number of pairs per split, and ``allow_decompression_bombs`` is ``any_size`` of ``image_file.open_image``.

    Returns the number of files written per folder. Raises UserError, before anything is written, if an image
    has no partner (unless ``skip_unpaired``), is broken or has another size than its partner (unless
    ``skip_bad_images``), if there are files where those of a split belong (unless ``overwrite``), if two
    pairs would be written to one file, or if only some of the pairs are in folders train, val or test.
    """
    if console is None:
        console = QuietConsole()
    switches = (use_AB, skip_unpaired, skip_bad_images, overwrite, allow_decompression_bombs)
    options = _Options(Path(A), Path(B), Path(output), split, num_imgs, *switches, console)
    if split is not None and split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if num_imgs is not None and (not isinstance(num_imgs, int) or num_imgs is True or num_imgs < 1):
        raise UserError(f"num_imgs must be an integer of at least 1, got {num_imgs!r}")
    with console:
        pairs = _first_of_each_split(_planned(options), num_imgs)
        _require_free({pair.folder for pair in pairs}, options)
        _require_targets(pairs, options.output)
        pairs = _usable(pairs, options)
        written = _write(pairs, options)
    _print_summary(written, options)
    return written


# --- What to join -------------------------------------------------------------------------------------------


def _planned(options: _Options) -> list[_Pair]:
    """Return all pairs of the two folders. Raises UserError if images have no partner."""
    for folder in (options.A, options.B):
        need_folder(folder)
    if options.A.resolve() == options.B.resolve() and not options.use_AB:
        raise UserError(
            f"A and B are the same folder: {options.A}; if the names of its images end in _A and _B, pass"
            " --use_AB"
        )
    in_A, in_B = _images(options.A, "_A", options), _images(options.B, "_B", options)
    pairs = find_pairs(options.A, in_A, options.B, in_B)
    _require_partners(pairs, options)
    has_splits = _has_splits(pairs, options)
    base = options.output
    if not has_splits:
        base /= "train" if options.split is None else options.split
    planned = []
    for a, b in zip(pairs.A, pairs.B, strict=True):
        name = _common_name(a.relative_to(options.A), b.relative_to(options.B))
        planned.append(_Pair(a, b, base / name, base / name.parts[0] if has_splits else base))
    _require_different_files(planned)
    return planned


def _has_splits(pairs: Pairs, options: _Options) -> bool:
    """Return whether the pairs are in folders train, val and test.

    Raises UserError if only some of them are, or if --split names another folder for them.
    """
    outside = [a for a in pairs.A if not _is_in_split(a.relative_to(options.A))]
    if len(outside) == len(pairs.A):
        return False
    if options.split is not None:
        raise UserError(f"--split {options.split}: the images are in train/, val/ or test/ already")
    if outside:
        others = f" (and {len(outside) - 1:,} more)" if len(outside) > 1 else ""
        raise UserError(
            f"{outside[0]}{others} is not in train/, val/ or test/, as other images are; move it into one of"
            " them, or out of the dataset"
        )
    return True


def _is_in_split(image: Path) -> bool:
    """Return whether ``image``, a path in the folder of its domain, is in train, val or test."""
    return len(image.parts) > 1 and image.parts[0] in SPLITS


def _require_different_files(pairs: Sequence[_Pair]) -> None:
    """Raise UserError if two of the ``pairs`` would be one file, or one the folder of another."""
    by_file: dict[Path, _Pair] = {}
    for pair in pairs:
        other = by_file.setdefault(pair.file, pair)
        if other is not pair:
            raise UserError(
                f"two pairs would be written to {pair.file}: {other.A} and {other.B}, and {pair.A} and"
                f" {pair.B}; rename the images of one of them"
            )
    for pair in pairs:
        for folder in pair.file.parents:
            if folder in by_file:
                other = by_file[folder]
                raise UserError(
                    f"{other.A} and {other.B} would be written to {folder}, which would be the folder of"
                    f" {pair.A} and {pair.B}; rename the images of one of them"
                )


def _images(folder: Path, ending: str, options: _Options) -> list[Path]:
    """Return the images in ``folder``, with --use_AB those whose names end in ``ending``."""
    found = find_files(folder)
    found.require_readable(options.skip_bad_images)
    if not found.images:
        raise no_images(found)
    if found.passed_over:
        options.console.log(found.passed_over)
    if not options.use_AB:
        return found.images
    images = [path for path in found.images if path.stem.endswith(ending)]
    if not images:
        raise UserError(f"{folder}: no image has a name that ends in {ending}, as --use_AB wants")
    return images


def _require_partners(pairs: Pairs, options: _Options) -> None:
    """Raise UserError if images have no partner. With --skip_unpaired, list them."""
    if not pairs.A:
        first = f"the first are {pairs.only_A[0]} and {pairs.only_B[0]}"
        raise UserError(f"no two images of A and B have the same name; {first}")
    lines = [f"{a} has no partner in {options.B}" for a in pairs.only_A]
    lines += [f"{b} has no partner in {options.A}" for b in pairs.only_B]
    if lines and not options.skip_unpaired:
        counts = f"{len(pairs.only_A):,} of A and {len(pairs.only_B):,} of B have none"
        raise UserError(f"{lines[0]} ({counts}); pass --skip_unpaired to list and leave out such images")
    options.list_all([f"left out: {line}" for line in lines])


def _common_name(a: Path, b: Path) -> Path:
    """Return the name of the file for a pair: that of A, without _A if B has not the same name."""
    stem = a.stem
    if stem != b.stem:
        stem = stem.removesuffix("_A")
    return a.with_name(f"{stem}.png")


def _first_of_each_split(pairs: Sequence[_Pair], most: int | None) -> list[_Pair]:
    """Return the first ``most`` pairs of each split, or all if None."""
    counts: Counter[Path] = Counter()
    first = []
    for pair in pairs:
        counts[pair.folder] += 1
        if most is None or counts[pair.folder] <= most:
            first.append(pair)
    return first


def _require_free(folders: Collection[Path], options: _Options) -> None:
    """Raise UserError if one of the ``folders`` to write has files already, or overlaps with A or B."""
    for folder in sorted(folders):
        real = folder.resolve()
        for source in (options.A, options.B):
            if real.is_relative_to(source.resolve()) or source.resolve().is_relative_to(real):
                raise UserError(f"{folder} would be written, but it contains {source}, or is in it")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: not a folder")
        is_empty = not folder.is_dir() or all(path.name.startswith(".") for path in folder.iterdir())
        if not is_empty and not options.overwrite:
            raise UserError(
                f"{folder} is not empty: choose another folder, or pass --overwrite to replace files of the"
                " same names in it and to keep the others"
            )


def _require_targets(pairs: Sequence[_Pair], output: Path) -> None:
    """Raise UserError if a folder has the name of a file to write, or a file that of a folder."""
    folders = {pair.file.parent for pair in pairs}
    for folder in sorted({parent for path in folders for parent in (path, *path.parents)}):
        if folder.is_relative_to(output) and folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: not a folder")
    for pair in pairs:
        if pair.file.is_dir():
            raise UserError(f"{pair.file}: a folder, so no image can be written there; move or rename it")


# --- Checks -------------------------------------------------------------------------------------------------


def _usable(pairs: Sequence[_Pair], options: _Options) -> list[_Pair]:
    """Return the pairs whose images are whole and of equal sizes.

    Raises UserError if there are others. With --skip_bad_images, list them.
    """
    paths = [path for pair in pairs for path in (pair.A, pair.B)]
    checked = check_files(paths, _progress(options.console, "checked", "images"), options.any_size)
    in_A, in_B = checked[::2], checked[1::2]
    bad, usable = [], []
    for pair, a, b in zip(pairs, in_A, in_B, strict=True):
        reason = _fault(pair, a, b)
        if reason:
            bad.append(reason)
        else:
            usable.append(pair)
    if bad and not options.skip_bad_images:
        others = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}{others}; pass --skip_bad_images to list and skip such pairs")
    options.list_all([f"skipped: {reason}" for reason in bad])
    if not usable:
        raise UserError("no pair of usable images is left")
    for folder, files in ((options.A, in_A), (options.B, in_B)):
        warning = dark_images(folder, [file for file in files if not file.error])
        if warning:
            options.console.log(warning)
    return usable


def _fault(pair: _Pair, a: Checked, b: Checked) -> str:
    """Return why two images cannot be joined, or ""."""
    for path, file in ((pair.A, a), (pair.B, b)):
        if file.error:
            return f"bad image {path}: {file.error}"
    return _unequal(pair, (a.width, a.height), (b.width, b.height))


def _unequal(pair: _Pair, a: Size, b: Size) -> str:
    if a == b:
        return ""
    sizes = f"{pair.A} has {a[0]}x{a[1]} pixels and {pair.B} has {b[0]}x{b[1]}"
    return f"the images of a pair must have equal sizes, but {sizes}"


# --- Writing ------------------------------------------------------------------------------------------------


def _join(pair: _Pair, any_size: bool) -> None:
    """Write the file of a pair."""
    left, right = (open_image(path, any_size=any_size) for path in (pair.A, pair.B))
    if left.size != right.size:
        raise BadImageError(pair.A, f"the file changed: {_unequal(pair, left.size, right.size)}")
    joined = Image.new("RGB", (2 * left.width, left.height))
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    write_atomically(pair.file, lambda partial: joined.save(partial, "PNG", compress_level=_COMPRESSION))


def _write(pairs: Sequence[_Pair], options: _Options) -> dict[Path, int]:
    """Write the files of ``pairs``, and return their number per folder."""
    for folder in sorted({pair.file.parent for pair in pairs}):
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(folder)
    show, written = _progress(options.console, "joined", "pairs"), Counter[Path]()
    with ReadingThreads(default_threads()) as threads:
        futures = [threads.submit(_join, pair, options.any_size) for pair in pairs]
        for count, (pair, future) in enumerate(zip(pairs, futures, strict=True), start=1):
            try:
                result_of(future)
            except BadImageError as error:  # the file broke after it was checked
                if not options.skip_bad_images or error.is_lack_of_memory:
                    raise
                options.console.log(f"skipped: bad image {error}")
            else:
                written[pair.folder] += 1
            show(count, len(pairs))
    return dict(written)


def _progress(console: Console, done: str, what: str) -> Callable[[int, int], None]:
    """Return a function that shows progress in a terminal, and otherwise prints a line now and then."""
    last = 0

    def show(count: int, total: int) -> None:
        nonlocal last
        if count > last and (console.is_terminal or count % 1000 == 0):
            console.progress(count, total, f"{done} {count:,} of {total:,} {what}")
        last = count

    return show


def _print_summary(written: dict[Path, int], options: _Options) -> None:
    for folder, count in written.items():
        options.console.log(f"{folder}: {count:,} {'pair' if count == 1 else 'pairs'}")
    if options.output / "train" in written:
        command = f"python scripts/train.py --dataroot {shlex.quote(str(options.output))}"
        options.console.log(f"to train on them: {command} --dataset_mode aligned")
