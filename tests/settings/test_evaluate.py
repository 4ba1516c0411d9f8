"""The settings of evaluate.py: two folders or weights, and what goes with each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.settings.evaluate import EvaluateConfig
from fastcyclegan.settings.metrics import MetricConfig

FOLDERS = {"fake": Path("a"), "real": Path("b")}
WEIGHTS = {"weights": Path("run")}


def test_two_folders_or_weights() -> None:
    EvaluateConfig(**FOLDERS, metrics=("fid",), resample=10, json=Path("c"))
    EvaluateConfig(**WEIGHTS)
    EvaluateConfig(**WEIGHTS, dataroot=Path("data"), direction="BtoA", epoch="best", seed=0, image_size=8)
    EvaluateConfig(**WEIGHTS, image_size="none", precision="auto", eval=True, ema=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give two folders of images, --fake and --real, or --weights"),
        ({"fake": Path("a")}, "give two folders of images, --fake and --real, or --weights"),
        ({"real": Path("a")}, "give two folders of images, --fake and --real, or --weights"),
        (
            WEIGHTS | {"fake": Path("a")},
            "--fake and --weights contradict each other: --weights translates images itself",
        ),
        (
            WEIGHTS | {"real": Path("a")},
            "--real and --weights contradict each other: --weights translates images itself",
        ),
        (
            WEIGHTS | {"epoch": "first"},
            "epoch must be latest, previous, best, a number or iter_N, got 'first'",
        ),
        (WEIGHTS | {"direction": "A"}, "direction must be AtoB or BtoA or NoneType, got 'A'"),
        (WEIGHTS | {"seed": -1}, "seed must be at least 0, got -1"),
        (WEIGHTS | {"image_size": 7}, "image_size must be at least 8, got 7"),
        (WEIGHTS | {"image_size": 0}, "image_size must be at least 8, got 0"),
        (WEIGHTS | {"image_size": 65537}, "image_size must be at most 65536, got 65537"),
        (WEIGHTS | {"precision": "fp16"}, "precision must be one of auto, fp32, bf16, got 'fp16'"),
        (FOLDERS | {"metrics": ()}, "metrics must be names of metrics, such as fid, got none"),
        (FOLDERS | {"metrics": "fid"}, "metrics must be tuple[str, ...] or NoneType, got 'fid'"),
        (FOLDERS | {"resample": -1}, "resample must be at least 0, got -1"),
        (FOLDERS | {"resample": 2.5}, "resample must be int, got 2.5"),
        (FOLDERS | {"resample": 10**7}, "resample must be at most 10000, got 10000000"),
        (FOLDERS | {"fake": 3}, "fake must be Path or NoneType, got 3"),
        (FOLDERS | {"json": Path("a\0b")}, "json contains characters that no path can have: 'a\\x00b'"),
    ],
)
def test_values_that_cannot_be_right(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        EvaluateConfig(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dataroot", Path("data")), ("direction", "AtoB"), ("epoch", "5"), ("key", "net"), ("ema", True)),
        *(("eval", True), ("no_dropout", True), ("seed", 0), ("image_size", 64), ("image_size", "none")),
        ("precision", "bf16"),
    ],
)
def test_settings_of_weights_need_weights(name: str, value: Any) -> None:
    EvaluateConfig(**WEIGHTS, **{name: value})
    message = f"^--{name} needs --weights: the images in --fake are translations already$"
    with pytest.raises(UserError, match=message):
        EvaluateConfig(**FOLDERS, **{name: value})


@pytest.mark.parametrize(
    ("metrics", "given", "needed"),
    [
        (("l1",), {"features": "vgg16"}, "fid or kid"),
        (("l1", "lpips"), {"kid_subsets": 3}, "fid or kid"),
        (("fid",), {"lpips_net": "vgg16"}, "lpips"),
    ],
)
def test_settings_of_metrics_that_are_not_computed(
    metrics: tuple[str, ...], given: dict[str, Any], needed: str
) -> None:
    metric = MetricConfig(**given)
    EvaluateConfig(**FOLDERS, metric=metric)
    EvaluateConfig(**FOLDERS, metrics=(*metrics, needed.split()[0]), metric=metric)
    (name,) = given
    with pytest.raises(UserError, match=f"^--{name} has no effect without --metrics {needed}$"):
        EvaluateConfig(**FOLDERS, metrics=metrics, metric=metric)
