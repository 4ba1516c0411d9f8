"""Changes that a train.py makes during training are detected, and the checkout's own step then takes over."""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan.official.change_guard import ChangeGuard
from fastcyclegan.official.patch_model import Options
from tests.official.training import MODEL, SET_INPUT, STEP, assert_same, checkout, train


def _halve_rate(model: Any, n: int) -> None:
    if n >= 3:
        model.optimizer_D.param_groups[0]["lr"] *= 0.5


def _at(iteration: int, change: Callable[[Any], object]) -> Callable[[Any, int], object]:
    return lambda model, n: change(model) if n == iteration else None


def _set(path: str, value: object) -> Callable[[Any], object]:
    """Return a function that sets the attribute at ``path`` of a model, for example opt.lambda_A."""
    *owners, name = path.split(".")
    return lambda model: setattr(functools.reduce(getattr, owners, model), name, value)


def _scale(module: Any, inputs: Any, output: Any) -> Any:
    return 0.9 * output


def _squared(self: Any, prediction: Any, target_is_real: bool) -> Any:
    return (prediction - float(target_is_real)).square().mean()


# After 5 iterations the pools of 3 are full, so their contents matter later.
CHANGES: dict[str, tuple[Callable[[Any, int], object], str]] = {
    "lambda_A": (_at(5, _set("opt.lambda_A", 50.0)), "opt.lambda_A changed from 10.0 to 50.0"),
    "no identity": (_at(5, _set("opt.lambda_identity", 0.0)), "opt.lambda_identity changed from 0.5 to 0.0"),
    "a filling pool": (_at(2, _set("opt.lambda_B", 5.0)), "opt.lambda_B changed from 10.0 to 5.0"),
    "gan_mode": (_at(5, _set("opt.gan_mode", "vanilla")), "opt.gan_mode changed from lsgan to vanilla"),
    "gan_mode of the criterion": (
        _at(5, _set("criterionGAN.gan_mode", "vanilla")),
        "criterionGAN.gan_mode changed from lsgan to vanilla",
    ),
    "criterion": (
        _at(5, _set("criterionCycle", nn.MSELoss())),
        "criterionCycle changed",
    ),
    "labels": (
        _at(5, lambda model: model.criterionGAN.real_label.fill_(0.9)),
        "criterionGAN.real_label changed",
    ),
    "learning rates": (_halve_rate, "generators and discriminators have different learning rates"),
    "betas": (
        _at(5, lambda model: model.optimizer_G.param_groups[0].update(betas=(0.9, 0.9))),
        "optimizer_G.betas changed",
    ),
    "a frozen layer": (
        _at(5, lambda model: model.netG_A.model[1].requires_grad_(False)),
        "requires_grad of the parameters of netG_A changed",
    ),
    "evaluation": (_at(5, lambda model: model.eval()), "training or evaluation mode of netG_A changed"),
    "a network": (
        _at(5, lambda model: setattr(model, "netD_A", copy.deepcopy(model.netD_A))),
        "netD_A changed",
    ),
    "moments": (_at(5, lambda model: model.optimizer_G.state.clear()), "an optimizer has lost its moments"),
    "loaded moments": (
        _at(5, lambda model: model.optimizer_G.load_state_dict(model.optimizer_G.state_dict())),
        "optimizer_G.state changed",
    ),
    "a hook": (
        _at(5, lambda model: model.netG_A.register_forward_hook(_scale)),
        "hooks of netG_A changed",
    ),
    "an added layer": (
        _at(5, lambda model: model.netG_A.model.append(nn.Identity())),
        "layers of netG_A changed",
    ),
    "a removed layer": (_at(5, lambda model: model.netD_A.model.pop(-1)), "layers of netD_A changed"),
    "an optimizer's step": (_at(5, _set("optimizer_D.step", lambda: None)), "optimizer_D.step changed"),
    "the random numbers of a pool": (
        _at(5, lambda model: setattr(sys.modules["util.image_pool"], "random", random.Random(1))),
        "random module of fake_A_pool changed",
    ),
    "a method": (
        _at(5, lambda model: setattr(model, "backward_D_A", model.forward)),
        "backward_D_A changed",
    ),
    "a method of the criterion": (
        _at(5, lambda model: setattr(type(model.criterionGAN), "forward", _squared)),
        "criterionGAN.forward changed",
    ),
    "a method of a pool": (
        _at(5, _set("fake_A_pool.query", lambda images: images)),
        "fake_A_pool.query changed",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_later_change_hands_back_to_the_checkouts_own_step(
    tmp_path: Path, images: Path, change: str
) -> None:
    after, reason = CHANGES[change]
    folder = checkout(tmp_path)
    ours, official = (
        train(folder, images, "--norm batch", options, after=after) for options in (Options(), None)
    )
    assert any(line.startswith(STEP) for line in ours[2]), ours[2]
    assert ours[2][-1].startswith(f"training step: back to the checkout's own: {reason}")
    assert ours[2][-1].endswith(
        "; it continues with the current weights and optimizer moments, and with the images in the pools"
    )
    assert_same(ours, official)


def test_a_loss_weight_that_decays_with_the_epochs_is_detected(tmp_path: Path, images: Path) -> None:
    """Methods outside the step are not checked themselves, but changes that they make to the model are found.

    Here, ``update_learning_rate`` also scales lambda_A.
    """
    method = (
        "    def update_learning_rate(self):\n        BaseModel.update_learning_rate(self)\n       "
        " self.opt.lambda_A *= 0.1\n\n"
    )
    folder = checkout(tmp_path, [(MODEL, SET_INPUT, f"{method}{SET_INPUT}")])
    ours = train(folder, images, "", Options())
    assert ours[2][-1].startswith(
        "training step: back to the checkout's own: opt.lambda_A changed from 10.0 to 1.0; it continues"
    )
    assert_same(ours, train(folder, images, "", None))


def test_a_pool_that_cannot_store_our_images_is_named(tmp_path: Path, images: Path) -> None:
    other = SimpleNamespace(pool_size=3, query=lambda images: images)
    after = _at(2, _set("fake_A_pool", other))
    _, _, logged = train(checkout(tmp_path), images, "", Options(), epochs=1, after=after)
    assert logged[-1] == (
        "training step: back to the checkout's own: fake_A_pool changed; it continues with the current"
        " weights and optimizer moments, but fake_A_pool cannot store the images of fastcyclegan's pools"
    )


class _ForbidOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called")


def test_finding_changes_calls_no_operator(tmp_path: Path, images: Path) -> None:
    """Comparing the model with the snapshot calls no operator of PyTorch, so it never waits for a GPU."""
    model, _, _ = train(checkout(tmp_path), images, "--norm batch", Options(), epochs=1)
    guard = ChangeGuard(model)
    with _ForbidOperators():
        assert guard.find_change(model) == ""
        model.criterionGAN.real_label = model.criterionGAN.fake_label
        assert guard.find_change(model) == "criterionGAN.real_label changed"
