"""Find out which images and pairs of a dataset can be used, and report the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.equal_sizes import resized_size, size_text
from fastcyclegan.data.fit import Fit, ImageRequirements, why_not_usable
from fastcyclegan.data.halves import Half, half_size
from fastcyclegan.data.pairs import Pairs
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig

Pair = tuple[Path, Path]
"""The files of an image of A and an image of B that belong together."""


def too_small(checked: Checked, fit: Fit, required: ImageRequirements, half: Half | None = None) -> str:
    """Return why a readable image, or a ``half`` of it, does not fit the crop or the networks, or ""."""
    reason = why_not_usable(checked.size, fit, half)
    if reason:
        return reason
    if min(resized_size(checked, fit, half)) < required.least_side:
        least = f"at least {required.least_side} pixels per side"
        cut = "" if half is None else "cut in halves, "
        return f"{cut}{size_text(half_size(checked.size, half))} is too small: the networks need {least}"
    return ""


def usable_images(
    paths: Sequence[Path],
    config: DataConfig,
    required: ImageRequirements,
    log: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
    cut: bool = False,
) -> dict[Path, Checked]:
    """Return the usable images among ``paths``, with the results of their checks.

    If ``cut`` is set, each is cut into two images, A and B. Bad images raise UserError or, with
    skip_bad_images, are logged and left out.
    """
    bad = []
    good = {}
    fit = Fit.of(config, multiple=required.size_multiple)
    half: Half | None = "left" if cut else None
    checks = check_files(paths, progress, config.allow_decompression_bombs)
    for path, checked in zip(paths, checks, strict=True):
        reason = checked.error
        if not reason:
            reason = too_small(checked, fit, required, half)
        if reason:
            bad.append(f"{path}: {reason}")
        else:
            good[path] = checked
    _skip_or_raise(bad, "image", config.skip_bad_images, log)
    return good


def usable_pairs(
    pairs: Sequence[Pair], good: Mapping[Path, Checked], fit: Fit, skip: bool, log: Callable[[str], None]
) -> list[Pair]:
    """Return the ``pairs`` of two ``good`` images that have one size after the resize of ``fit``.

    One crop cannot serve images of two sizes, so such pairs raise UserError or, if ``skip`` is set, are
    logged and left out. The number of all pairs that were left out is logged.
    """
    bad, usable = [], []
    for a, b in pairs:
        if a not in good or b not in good:
            continue
        size_A, size_B = resized_size(good[a], fit), resized_size(good[b], fit)
        if size_A == size_B:
            usable.append((a, b))
        else:
            found = f"--preprocess {fit.preprocess} makes them {size_text(size_A)} and {size_text(size_B)}"
            bad.append(f"{a} and {b}: a pair needs images of one size, but {found}")
    _skip_or_raise(bad, "pair", skip, log)
    count = len(pairs) - len(usable)
    if count:
        left_out = "1 pair is" if count == 1 else f"{count:,} pairs are"
        log(f"{left_out} left out, because of bad images")
    return usable


def _skip_or_raise(bad: Sequence[str], kind: str, skip: bool, log: Callable[[str], None]) -> None:
    if bad and not skip:
        first = bad[0]
        if len(bad) > 1:
            first += f" (and {len(bad) - 1} more)"
        raise UserError(f"bad {kind} {first}; pass --skip_bad_images to list and skip such {kind}s")
    for line in bad:
        log(f"skipped {line}")


def without_partner(pairs: Pairs, folder_A: Path, folder_B: Path) -> str:
    """Return how many images of ``folder_A`` and ``folder_B`` have no partner, with the first, or ""."""
    lone = {folder_A: pairs.only_A, folder_B: pairs.only_B}
    parts = []
    for folder, images in lone.items():
        if images:
            parts.append(f"{len(images):,} in {folder}, the first {images[0].relative_to(folder)}")
    if not parts:
        return ""
    count = sum(map(len, lone.values()))
    counted = "1 image" if count == 1 else f"{count:,} images"
    return f"{counted} without a partner of the same name: {' and '.join(parts)}"
