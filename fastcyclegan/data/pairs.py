"""Find which images of two folders belong together, by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastcyclegan.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """The pairs of images of two folders, in the order of A, and the images without a partner.

    ``A[i]`` and ``B[i]`` are a pair.
    """

    A: list[Path]
    B: list[Path]
    only_A: list[Path]
    only_B: list[Path]


def _stems(images: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Return the path of each image relative to ``folder``, without the suffix."""
    return {image: image.relative_to(folder).with_suffix("").as_posix() for image in images}


def _without(ending: str, stem: str) -> str:
    """Return ``stem`` without ``ending``, unless nothing else would be left of the name."""
    if PurePosixPath(stem).name == ending:
        return stem
    return stem.removesuffix(ending)


def _partners(names_A: Mapping[Path, str], names_B: Mapping[Path, str]) -> dict[Path, Path]:
    """Return the image of B that has the same name, for each image of A that has one.

    Raises UserError if an image has two candidates.
    """
    by_name: defaultdict[str, tuple[list[Path], list[Path]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((names_A, names_B)):
        for image, name in names.items():
            by_name[name][side].append(image)
    partner_of = {}
    for in_A, in_B in by_name.values():
        if in_A and in_B:
            _require_single(in_A[0], in_B)
            _require_single(in_B[0], in_A)
            partner_of[in_A[0]] = in_B[0]
    return partner_of


def find_pairs(folder_A: Path, in_A: Sequence[Path], folder_B: Path, in_B: Sequence[Path]) -> Pairs:
    """Pair the images ``in_A`` of ``folder_A`` with those ``in_B`` of ``folder_B``.

    Two images are a pair if their paths in the folders are the same, apart from the suffix. Those that have
    no such partner are a pair if their paths are the same apart also from _A (of an image of A) or _B (of one
    of B) before the suffix. Raises UserError, which names three images, if an image has two candidates.
    """
    stems_A, stems_B = _stems(in_A, folder_A), _stems(in_B, folder_B)
    partner_of = _partners(stems_A, stems_B)
    paired = set(partner_of.values())
    # Names that end in _A or _B on both sides, such as those of letters, have been paired as they are.
    partner_of |= _partners(
        {a: _without("_A", stem) for a, stem in stems_A.items() if a not in partner_of},
        {b: _without("_B", stem) for b, stem in stems_B.items() if b not in paired},
    )
    paired = set(partner_of.values())
    A = [a for a in in_A if a in partner_of]
    return Pairs(
        A=A,
        B=[partner_of[a] for a in A],
        only_A=[a for a in in_A if a not in partner_of],
        only_B=[b for b in in_B if b not in paired],
    )


def _require_single(image: Path, candidates: Sequence[Path]) -> None:
    """Raise UserError if there are several ``candidates`` for the partner of ``image``."""
    if len(candidates) > 1:
        raise UserError(
            f"{image}: two images could be its partner, {candidates[0]} and {candidates[1]}; remove or rename"
            " one of them"
        )
