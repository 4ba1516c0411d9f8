"""Networks that a caller changed are trained, or refused before training, and one line says if they cannot be
loaded again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import CycleGAN
from fastcyclegan.errors import UserError

SMALL: dict[str, Any] = {"ngf": 2, "ndf": 2, "netG": "resnet_1blocks", "netD": "pixel", "device": "cpu"}
IMAGES = [torch.rand(1, 3, 24, 24) * 2 - 1]


def _share(model: CycleGAN) -> None:
    model.G_AB.model[1].weight = model.G_BA.model[1].weight  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_share, r"G_BA\.model\.1\.weight is also G_AB\.model\.1\.weight, but networks that share weights"),
        (
            lambda m: m.D_A.double(),
            r"D_A\.net\.0\.weight must be float32 .* got float64: call D_A\.float",
        ),
        (lambda m: m.G_AB.half(), r"G_AB\.model\.1\.weight must be float32 to be trained, got float16"),
        (
            lambda m: m.G_AB.to("meta"),
            r"G_AB\.model\.1\.weight has no data, because it is on",
        ),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(
    change: Callable[[CycleGAN], object], message: str
) -> None:
    model = CycleGAN(**SMALL)
    change(model)
    with pytest.raises(UserError, match=message):
        model.fit(IMAGES, IMAGES, n_epochs=1, n_epochs_decay=0)


def _tie(model: Any) -> None:
    block = model.G_AB.model[10].conv_block
    block[5].weight = block[1].weight


def test_weights_that_one_network_uses_twice_are_trained() -> None:
    model: Any = CycleGAN(**SMALL)
    _tie(model)
    for epochs in (1, 2):
        model.fit(IMAGES, IMAGES, n_epochs=epochs, n_epochs_decay=0)
    assert model.iteration == 2


def test_networks_whose_layers_share_weights_are_saved_with_a_warning(tmp_path: Path) -> None:
    model = CycleGAN(**SMALL)
    _tie(model)
    with pytest.warns(UserWarning, match="layers of G_AB share weights"):
        model.save(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.G_AB.register_buffer("scale", torch.ones(3)), "G_AB.scale is unexpected"),
        (lambda m: setattr(m.D_B, "net", m.D_B.net[:-1]), "D_B.net.5.weight is missing"),
        (lambda m: m.G_BA.model[10].conv_block.__setitem__(1, nn.Conv2d(8, 8, 3, bias=False)), "is missing"),
    ],
)
def test_networks_that_cannot_be_loaded_again_are_saved_with_a_warning(
    change: Callable[[Any], object], problem: str, tmp_path: Path
) -> None:
    model = CycleGAN(**SMALL)
    change(model)
    with pytest.warns(UserWarning, match=f"runs: the networks were changed .*{problem}"):
        model.save(tmp_path / "runs")
    with pytest.raises(UserError):
        CycleGAN.load(tmp_path / "runs")


def test_unchanged_networks_are_saved_without_a_warning(tmp_path: Path) -> None:
    model = CycleGAN(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = torch.get_rng_state()
        model.save(tmp_path / "run")
        assert torch.equal(torch.get_rng_state(), before)
    CycleGAN.load(tmp_path / "run")
