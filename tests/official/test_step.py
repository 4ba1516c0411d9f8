"""Models whose step ours does not replace, and the reason that is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fastcyclegan.official.patch_model import Options
from fastcyclegan.official.step import NotServedError, unwrapped
from tests.official.training import NETWORKS, checkout, train


def test_wgangp_keeps_its_step_and_a_network_of_another_shape_its_place(tmp_path: Path, images: Path) -> None:
    folder = checkout(
        tmp_path,
        [
            (
                NETWORKS,
                "nn.Conv2d(ngf, output_nc, 7), nn.Tanh()",
                "nn.Conv2d(ngf, output_nc, 7), nn.Hardtanh()",
            )
        ],
    )
    _, _, logged = train(folder, images, "--gan_mode wgangp", Options(precision="bf16"), epochs=1)
    assert logged[1].startswith("ResnetGenerator: kept as it is: its images differ from those of ours by ")
    assert logged[2:] == ["NLayerDiscriminator: ours, the same function in float64", logged[3]]
    assert (
        logged[3]
        == "step: the checkout's own: netG_A is a ResnetGenerator of the checkout (without effect on it:"
        " --precision)"
    )
    _, _, logged = train(checkout(tmp_path / "other"), images, "--gan_mode wgangp", Options(), epochs=1)
    assert (
        logged[-1]
        == "step: the checkout's own: with gan_mode wgangp the official step has no gradient penalty, and"
        " ours has one"
    )


def test_several_gpus_are_not_served() -> None:
    net = nn.DataParallel(nn.Conv2d(3, 3, 1))
    net.device_ids = [0, 1]
    with pytest.raises(NotServedError, match="on 2 GPUs"):
        unwrapped("netG_A", net)
