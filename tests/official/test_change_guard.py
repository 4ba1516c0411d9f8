"""What a train.py changes after our step was made is seen, and the checkout's own step goes on from there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from fastcyclegan.official.patch_model import Options
from tests.official.training import MODEL, SET_INPUT, STEP, assert_same, checkout, train


def _halve_rate(model: Any, n: int) -> None:
    if n >= 3:
        model.optimizer_D.param_groups[0]["lr"] *= 0.5


def _at(iteration: int, change: Callable[[Any], object]) -> Callable[[Any, int], object]:
    return lambda model, n: change(model) if n == iteration else None


def _set(name: str, value: object) -> Callable[[Any], object]:
    return lambda model: setattr(model.opt if name.startswith("lambda") else model, name, value)


def _scale(module: Any, given: Any, made: Any) -> Any:
    return 0.9 * made


# The pools of 3 are full after 5, so that what they hold is shown later.
CHANGES: dict[str, tuple[Callable[[Any, int], object], str]] = {
    "lambda_A": (_at(5, _set("lambda_A", 50.0)), "opt.lambda_A is 50.0, was 10.0"),
    "no identity": (_at(5, _set("lambda_identity", 0.0)), "opt.lambda_identity is 0.0, was 0.5"),
    "a filling pool": (_at(2, _set("lambda_B", 5.0)), "opt.lambda_B is 5.0, was 10.0"),
    "criterion": (
        _at(5, _set("criterionCycle", nn.MSELoss())),
        "criterionCycle is another (a MSELoss, was a L1Loss)",
    ),
    "labels": (
        _at(5, lambda model: model.criterionGAN.real_label.fill_(0.9)),
        "settings of criterionGAN changed",
    ),
    "rates": (_halve_rate, "generators and discriminators have learning rates of their own"),
    "betas": (
        _at(5, lambda model: model.optimizer_G.param_groups[0].update(betas=(0.9, 0.9))),
        "settings of optimizer_G: betas is (0.9, 0.9)",
    ),
    "a frozen layer": (
        _at(5, lambda model: model.netG_A.model[1].requires_grad_(False)),
        "requires_grad of the parameters of netG_A changed",
    ),
    "evaluation": (_at(5, lambda model: model.eval()), "mode (training or evaluation) of netG_A changed"),
    "a network": (
        _at(5, lambda model: setattr(model, "netD_A", copy.deepcopy(model.netD_A))),
        "netD_A is another",
    ),
    "moments": (_at(5, lambda model: model.optimizer_G.state.clear()), "an optimizer has lost its moments"),
    "loaded moments": (
        _at(5, lambda model: model.optimizer_G.load_state_dict(model.optimizer_G.state_dict())),
        "state of optimizer_G is another",
    ),
    "a hook": (
        _at(5, lambda model: model.netG_A.register_forward_hook(_scale)),
        "hooks of netG_A is 1, was 0",
    ),
    "a method": (
        _at(5, lambda model: setattr(model, "backward_D_A", model.forward)),
        "method backward_D_A changed",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_later_hands_over_to_the_checkouts_own_step(
    tmp_path: Path, pictures: Path, change: str
) -> None:
    after, reason = CHANGES[change]
    folder = checkout(tmp_path)
    ours, theirs = (
        train(folder, pictures, "--norm batch", options, after=after) for options in (Options(), None)
    )
    assert any(line.startswith(STEP) for line in ours[2]), ours[2]
    assert ours[2][-1].startswith(f"step: the checkout's own from here on: {reason}")
    assert ours[2][-1].endswith("; it goes on with our weights and moments and pools")
    assert_same(ours, theirs)


def test_weights_that_fall_with_the_epochs(tmp_path: Path, pictures: Path) -> None:
    """A method outside the step may do what it likes: what it changes is seen."""
    own = (
        "    def update_learning_rate(self):\n        BaseModel.update_learning_rate(self)\n       "
        " self.opt.lambda_A *= 0.1\n\n"
    )
    folder = checkout(tmp_path, [(MODEL, SET_INPUT, f"{own}{SET_INPUT}")])
    ours = train(folder, pictures, "", Options())
    assert ours[2][-1].startswith(
        "step: the checkout's own from here on: opt.lambda_A is 1.0, was 10.0; it goes on"
    )
    assert_same(ours, train(folder, pictures, "", None))


def test_pools_that_cannot_take_our_pictures_are_named(tmp_path: Path, pictures: Path) -> None:
    other = SimpleNamespace(pool_size=3, query=lambda images: images)
    after = _at(2, _set("fake_A_pool", other))
    _, _, said = train(checkout(tmp_path), pictures, "", Options(), epochs=1, after=after)
    assert said[-1].startswith("step: the checkout's own from here on: fake_A_pool is another")
    assert said[-1].endswith(
        "it goes on with our weights and moments, but fake_A_pool cannot take our pictures"
    )
