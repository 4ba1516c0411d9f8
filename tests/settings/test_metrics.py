"""The settings of metrics: values that cannot be right are refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.settings.metrics import MetricConfig


def test_the_side_depends_on_the_network() -> None:
    assert MetricConfig().side == 299
    assert MetricConfig(features="vgg16").side == 224
    assert MetricConfig(features="net.pt").side is None
    for features in ("inception", "vgg16", "net.pt"):
        assert MetricConfig(features=features, features_size=64).side == 64
        assert MetricConfig(features=features, features_size="none").side is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": ""}, "features must be inception, vgg16 or a file, got ''"),
        ({"features": Path("net.pt")}, "features must be str, got a PosixPath"),
        ({"features_size": 7}, "features_size must be at least 8, got 7"),
        ({"features_size": 0}, "features_size must be at least 8, got 0"),
        ({"features_size": 10**6}, "features_size must be at most 65536, got 1000000"),
        ({"features_size": 2.5}, "features_size must be int or none or NoneType, got 2.5"),
        ({"features_size": True}, "features_size must be int or none or NoneType, got True"),
        ({"features_size": "all"}, "features_size must be int or none or NoneType, got 'all'"),
        ({"feature_weights": Path("a.pth")}, "feature_weights are those of vgg16, but features is inception"),
        ({"resize": "none"}, "resize must be one of clean, legacy, got 'none'"),
        ({"lpips_net": "vgg"}, "lpips_net must be one of alex, vgg16, got 'vgg'"),
        ({"kid_subsets": 0}, "kid_subsets must be at least 1, got 0"),
        ({"kid_subset_size": 1}, "kid_subset_size must be at least 2, got 1"),
        ({"kid_subsets": 10**7}, "kid_subsets must be at most 1000000, got 10000000"),
        ({"kid_subset_size": 10**30}, "kid_subset_size must be below 2**63, got an integer of 100 bits"),
    ],
)
def test_values_that_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        MetricConfig(**settings)
    assert str(error.value) == message


def test_good_values() -> None:
    MetricConfig(
        features="vgg16", feature_weights=Path("a.pth"), features_size=8, kid_subsets=1, kid_subset_size=2
    )
