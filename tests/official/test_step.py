"""Models whose training step is not replaced, and the reasons that are logged."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from fastcyclegan.official.patch_model import Options
from fastcyclegan.official.step import NotReplaceableError, unwrap
from tests.official.training import NETWORKS, checkout, train


def test_wgangp_and_networks_that_differ_keep_the_checkouts_step(tmp_path: Path, images: Path) -> None:
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
    assert logged[1].startswith("ResnetGenerator: not replaced: its outputs differ from fastcyclegan's by ")
    assert logged[2:] == [
        "NLayerDiscriminator: replaced by fastcyclegan's (same outputs in float64)",
        logged[3],
    ]
    assert (
        logged[3]
        == "training step: not replaced: netG_A is the checkout's own ResnetGenerator (ignored: --precision)"
    )
    _, _, logged = train(checkout(tmp_path / "other"), images, "--gan_mode wgangp", Options(), epochs=1)
    assert (
        logged[-1]
        == "training step: not replaced: with gan_mode wgangp, the official step has no gradient penalty, but"
        " fastcyclegan's has one"
    )


def test_several_gpus_are_not_supported() -> None:
    net = nn.DataParallel(nn.Conv2d(3, 3, 1))
    net.device_ids = [0, 1]
    with pytest.raises(NotReplaceableError, match="on 2 GPUs"):
        unwrap("netG_A", net)
