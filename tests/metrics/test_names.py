"""The table of metrics, whose names are in files."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.names import METRICS, OF_PAIRS, OF_SETS, mean_of, require_known, shown
from fastcyclegan.settings.evaluation import MetricName


def test_the_names_are_frozen() -> None:
    assert list(METRICS) == ["fid", "kid", "l1", "psnr", "ssim", "lpips"]
    assert tuple(METRICS) == get_args(MetricName)
    assert OF_SETS == ("fid", "kid")
    assert (*OF_SETS, *OF_PAIRS) == tuple(METRICS)


def test_what_is_better_and_the_bounds() -> None:
    assert [name for name, metric in METRICS.items() if metric.is_better(2, than=1)] == ["psnr", "ssim"]
    assert [name for name, metric in METRICS.items() if metric.is_better(1, than=2)] == [
        "fid",
        "kid",
        "l1",
        "lpips",
    ]
    assert not any(metric.is_better(1, than=1) for metric in METRICS.values())
    assert [(metric.low, metric.high) for metric in METRICS.values()] == [
        (0, math.inf),
        (-math.inf, math.inf),
        (0, 1),
        (0, math.inf),
        (-1, 1),
        (0, math.inf),
    ]


def test_only_sets_need_features() -> None:
    assert [name for name, metric in METRICS.items() if metric.needs_features] == ["fid", "kid"]


def test_values_as_numbers_and_as_text() -> None:
    kid = {"mean": 0.0123456, "std": 0.00444}
    assert (mean_of(kid), mean_of(3)) == (0.0123456, 3.0)
    assert (shown(kid), shown(12.345678), shown(0.0)) == ("0.012346 (std 0.0044)", "12.346", "0")


def test_unknown_names() -> None:
    require_known(METRICS)
    require_known([])
    for name in ("FID", "", "kid "):
        with pytest.raises(UserError, match="there is no metric"):
            require_known(["l1", name])
