"""Settings given now replace saved ones that exclude them, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.config import TrainConfig, with_changes
from fastcyclegan.errors import UserError
from fastcyclegan.training.exclusive import require_effect, without_replaced

FOLDERS = {"data_A": Path("a"), "data_B": Path("b"), "holdout": 0.2}
PENALTY = {"gan_mode": "wgangp", "lambda_gp": 5.0}


def saved(**groups: Any) -> TrainConfig:
    return with_changes(TrainConfig(), groups)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        (saved(data=FOLDERS), {"dataroot": "x"}, saved()),
        (saved(data={"dataroot": Path("x")}), {"data_A": "a", "data_B": "b"}, saved()),
        (saved(data=FOLDERS), {"data_A": "c", "holdout": "0"}, saved(data=FOLDERS)),
        (saved(run={"gpu_ids": "0"}), {"device": "cpu"}, saved()),
        (saved(run={"device": "cpu"}), {"gpu_ids": "0"}, saved()),
        (saved(model={"use_dropout": True}), {"no_dropout": ""}, saved()),
        (saved(model={"no_dropout": True}), {"use_dropout": ""}, saved()),
        (saved(loss=PENALTY), {"gan_mode": "lsgan"}, saved(loss={"gan_mode": "wgangp"})),
        (saved(loss=PENALTY), {"gan_mode": "wgangp", "lr": "1"}, saved(loss=PENALTY)),
        (saved(data=FOLDERS), {"dataroot": None, "data_A": "c", "data_B": "d"}, saved(data=FOLDERS)),
        (saved(data=FOLDERS), {"dataroot": "None"}, saved(data=FOLDERS)),
        # Both are given, so they contradict each other as in a new run.
        (saved(data=FOLDERS), {"dataroot": "x", "data_A": "c"}, saved(data=FOLDERS)),
        (saved(run={"gpu_ids": "0"}), {"device": "cpu", "gpu_ids": "1"}, saved(run={"gpu_ids": "0"})),
    ],
)
def test_saved_settings_that_a_given_one_excludes_return_to_their_defaults(
    config: TrainConfig, given: dict[str, Any], expected: TrainConfig
) -> None:
    assert without_replaced(config, given) == expected


def test_a_setting_that_no_longer_applies_but_is_given_is_named() -> None:
    with pytest.raises(UserError, match="--holdout only applies to --data_A and --data_B"):
        without_replaced(saved(data=FOLDERS), {"dataroot": "x", "holdout": "0.2"})


EVALUATED = saved(evaluation={"eval_every": "2", "patience": 3, "eval_direction": "AtoB"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patience", "3"),
        ("eval_share", "0.1"),
        ("eval_direction", "AtoB"),
        ("eval_features", "vgg16"),
        ("eval_resize", "legacy"),
        ("eval_lpips_net", "vgg16"),
    ],
)
def test_settings_of_evaluations_need_one(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name} needs --eval_every or --eval_metric"):
        require_effect(saved(), {name: value})
    require_effect(saved(evaluation={"eval_metric": "l1"}), {name: value})


def test_saved_settings_of_evaluations_do_not_keep_them_from_being_turned_off() -> None:
    off = with_changes(EVALUATED, {"evaluation": {"eval_every": None}})
    require_effect(off, {"eval_every": "None", "eval_metric": None})
    assert not off.evaluation.asks


def test_how_often_is_said_once() -> None:
    shared = saved(evaluation={"eval_metric": "l1", "eval_share": 0.2})
    assert without_replaced(shared, {"eval_every": "5"}).evaluation.eval_share == 0.05
    assert without_replaced(EVALUATED, {"eval_share": "0.2"}).evaluation.eval_every is None
    with pytest.raises(UserError, match="--eval_share has no effect with --eval_every"):
        require_effect(EVALUATED, {"eval_share": "0.2"})
