"""Choose which metrics to compute: those that are asked for, or all that the images allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.images import ImageFiles
from fastcyclegan.metrics.names import METRICS, OF_PAIRS, OF_SETS, require_known

LEAST_SSIM = 11
"""The least side of images for SSIM, that of its window."""
UNSURE = 2000
"""The number of images below which FID depends much on their number."""


@dataclass(frozen=True)
class Facts:
    """What decides which metrics can be computed.

    ``fakes`` and ``reals`` are numbers of images, and ``names`` how messages call the two sets. ``pairs`` is
    the number of pairs; ``ambiguous`` tells why images cannot be paired by their names, or is "". ``unequal``
    describes a pair whose sizes differ, or is "", and ``least_side`` is the least side of an image of a pair.
    ``least_lpips`` is the least side of images for LPIPS, and ``has_lpips`` tells whether its weights are on
    this machine.
    """

    names: tuple[str, str]
    fakes: int
    reals: int
    pairs: int
    ambiguous: str = ""
    unequal: str = ""
    least_side: int = 2**31
    least_lpips: int = 1
    has_lpips: bool = True


def facts_of(
    names: tuple[str, str],
    measured: ImageFiles,
    reals: ImageFiles,
    partners: Sequence[int | None],
    ambiguous: str,
) -> Facts:
    """Return the facts about the images ``measured`` and ``reals``.

    Sizes are those that the headers of the files state. ``partners`` and ``ambiguous`` are as in ``HeldOut``.
    """
    pairs = [(n, partner) for n, partner in enumerate(partners) if partner is not None]
    unequal, least = "", 2**31
    for n, partner in pairs:
        size, other = measured.size(n), reals.size(partner)
        if (0, 0) in (size, other):  # reading the image tells what is wrong
            continue
        least = min(least, *size, *other)
        if size != other and not unequal:
            (w, h), (width, height) = size, other
            unequal = f"{measured.paths[n].name} has {w}x{h} pixels and its partner {width}x{height}"
    return Facts(names, len(measured), len(reals), len(pairs), ambiguous, unequal, least)


def choose_metrics(
    asked: Sequence[str] | None, facts: Facts, log: Callable[[str], object]
) -> tuple[str, ...]:
    """Return the metrics to compute, in the order of the table of metrics.

    If some are ``asked`` for, these are. Otherwise, ``log`` is called with a line about each that is left
    out. Raises UserError if one that is asked for cannot be computed, or none can.
    """
    if asked is not None:
        require_known(asked)
        chosen = [name for name in METRICS if name in asked]
    else:
        chosen = list(METRICS)
    reasons: dict[str, list[str]] = {}
    for name in chosen:
        reason = next(_problems(name, facts, is_asked=asked is not None), "")
        if reason:
            reasons.setdefault(reason, []).append(name)
    left = [name for name in chosen if not any(name in names for names in reasons.values())]
    if reasons and (asked is not None or not left):
        reason, names = next(iter(reasons.items()))
        raise UserError(f"{' and '.join(names)} cannot be computed: {reason}")
    for reason, names in reasons.items():
        log(f"without {', '.join(names)}: {reason}")
    return tuple(left)


def _problems(name: str, facts: Facts, *, is_asked: bool) -> Iterator[str]:
    """Yield the reasons why the metric ``name`` cannot be computed."""
    if name in OF_SETS and min(facts.fakes, facts.reals) < 2:
        least = facts.names[0] if facts.fakes < 2 else facts.names[1]
        yield f"it takes 2 images or more, but {least} has {min(facts.fakes, facts.reals)}"
    if name not in OF_PAIRS:
        return
    if facts.ambiguous:
        yield facts.ambiguous
    if not facts.pairs:
        yield f"no image of {facts.names[0]} has a partner of the same name in {facts.names[1]}"
    if facts.unequal:
        yield f"the images of a pair must have the same size, but {facts.unequal}"
    needed = {"ssim": LEAST_SSIM, "lpips": facts.least_lpips}.get(name, 1)
    if facts.least_side < needed:
        yield f"{METRICS[name].title} takes images of {needed} pixels or more, but one has {facts.least_side}"
    if name == "lpips" and not facts.has_lpips and not is_asked:
        yield (
            "its weights are not on this machine (--metrics lpips downloads them, --lpips_weights names a"
            " file)"
        )


def small_sets(facts: Facts, chosen: Sequence[str]) -> str:
    """Return what few images do to FID, or "" if there are enough or FID is not computed."""
    fewest = min(facts.fakes, facts.reals)
    if "fid" not in chosen or fewest >= UNSURE:
        return ""
    return (
        f"only {fewest:,} images: FID is too high with fewer than {UNSURE:,}, the more so the fewer, so only"
        " compare it with numbers of as many images; KID has no such bias"
    )
