"""Which metrics are computed: all that the images allow, or those that are asked for, or else a reason."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.choice import Facts, choose_metrics, small_sets

GOOD: dict[str, Any] = {"names": ("fake", "real"), "fakes": 50, "reals": 60, "pairs": 50, "least_side": 64}
OF_PAIRS = ["l1", "psnr", "ssim", "lpips"]


def chosen(asked: list[str] | None = None, **changes: object) -> tuple[list[str], list[str]]:
    """Return the chosen metrics and the lines."""
    lines: list[str] = []
    return list(choose_metrics(asked, Facts(**GOOD | changes), lines.append)), lines


def test_all_metrics_if_nothing_prevents_one() -> None:
    assert chosen() == (["fid", "kid", *OF_PAIRS], [])


def test_what_is_asked_for_is_in_the_order_of_the_table() -> None:
    assert chosen(["lpips", "kid", "l1", "kid"]) == (["kid", "l1", "lpips"], [])


CASES: list[tuple[dict[str, object], list[str], str]] = [
    ({"fakes": 1}, ["fid", "kid"], "it takes 2 images or more, but fake has 1"),
    ({"reals": 1}, ["fid", "kid"], "it takes 2 images or more, but real has 1"),
    ({"pairs": 0}, OF_PAIRS, "no image of fake has a partner of the same name in real"),
    ({"pairs": 0, "ambiguous": "a.png: two images"}, OF_PAIRS, "a.png: two images"),
    (
        {"unequal": "a.png has 3x4"},
        OF_PAIRS,
        "the images of a pair must have the same size, but a.png has 3x4",
    ),
    ({"least_side": 10}, ["ssim"], "SSIM takes images of 11 pixels or more, but one has 10"),
    (
        {"least_side": 30, "least_lpips": 31},
        ["lpips"],
        "LPIPS takes images of 31 pixels or more, but one has 30",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "names", "reason"), CASES)
def test_a_metric_that_cannot_be_computed(changes: dict[str, object], names: list[str], reason: str) -> None:
    """It is left out with a line, or an error if it is asked for, even beside others."""
    others = [name for name in ("fid", "kid", *OF_PAIRS) if name not in names]
    assert chosen(**changes) == (others, [f"without {', '.join(names)}: {reason}"])
    assert chosen(others, **changes) == (others, [])
    for name in names:
        with pytest.raises(UserError, match=f"^{name} cannot be computed: {re.escape(reason)}$"):
            chosen([*others, name], **changes)
    with pytest.raises(UserError, match=f"^{' and '.join(names)} cannot be computed: "):
        chosen(names, **changes)


def test_the_smallest_images_are_large_enough() -> None:
    assert chosen(least_side=11, least_lpips=11) == (["fid", "kid", *OF_PAIRS], [])


def test_missing_weights_are_downloaded_only_if_lpips_is_asked_for() -> None:
    names, (line,) = chosen(has_lpips=False)
    assert "lpips" not in names
    assert line == (
        "without lpips: its weights are not on this machine (--metrics lpips downloads them, --lpips_weights"
        " names a file)"
    )
    assert chosen(["lpips"], has_lpips=False) == (["lpips"], [])


def test_no_metric_is_left() -> None:
    with pytest.raises(
        UserError, match=r"^fid and kid cannot be computed: it takes 2 images or more, but fake"
    ):
        chosen(fakes=1, pairs=0)


def test_each_reason_is_a_line() -> None:
    names, lines = chosen(least_side=8, has_lpips=False, fakes=1, pairs=1)
    assert names == ["l1", "psnr"]
    assert [line.partition(":")[0] for line in lines] == ["without fid, kid", "without ssim", "without lpips"]


def test_unknown_metrics() -> None:
    with pytest.raises(
        UserError, match=r"^there is no metric 'FID'; the metrics are fid, kid, l1, psnr, ssim, l"
    ):
        chosen(["l1", "FID"])


def test_few_images_are_said_to_raise_fid() -> None:
    facts = Facts(**GOOD)
    assert small_sets(facts, ["fid"]).startswith("only 50 images: FID is too high with fewer than 2,000")
    assert small_sets(facts, ["kid", "l1"]) == ""
    assert small_sets(Facts(**GOOD | {"fakes": 2000, "reals": 2000}), ["fid"]) == ""
    assert small_sets(Facts(**GOOD | {"fakes": 9000, "reals": 1999}), ["fid"]).startswith("only 1,999 images")
