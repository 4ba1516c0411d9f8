"""Tests that the right network classes of a checkout are replaced, and that pix2pix works the same with them.

The replacements are also tested on the Triton kernels.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fastcyclegan.nn.networks import computed_by
from fastcyclegan.official.patch_model import Options
from fastcyclegan.testing import relative_error
from tests.official.training import (
    MODEL,
    NETWORKS,
    STEP,
    assert_same,
    checkout,
    importable,
    train,
    translated,
)


def test_steps_are_compared_without_dropout_and_derived_classes_are_kept(
    tmp_path: Path, images: Path
) -> None:
    """A step is replaced even if the networks have dropout, and a derived network class is not replaced.

    Our step draws dropout masks in another order, so the steps are compared without dropout.
    """
    derived = (
        "\n\nclass Derived(ResnetGenerator):\n    def __init__(self, width):\n       "
        " ResnetGenerator.__init__(self, 3, 3, width)\n"
    )
    edits = [
        (MODEL, "parser.set_defaults(no_dropout=True)", "pass"),
        (NETWORKS, "\n\nclass ResnetBlock", f"{derived}\n\nclass ResnetBlock"),
    ]
    folder = checkout(tmp_path, edits)
    model, _, logged = train(folder, images, "", Options(), epochs=1)
    assert any(line.startswith(STEP) for line in logged), logged
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.netG_A.modules())
    with importable(folder, Options(), []):
        from models.networks import Derived, ResnetGenerator  # type: ignore[import-not-found]

        assert type(Derived(4)) is Derived
        assert type(ResnetGenerator(3, 3, 4)).__module__ == "fastcyclegan.compat.networks"


def test_triton_kernels_compute_a_checkouts_networks(tmp_path: Path, device: str) -> None:
    outputs = []
    for options in (Options(impl="triton"), None):
        torch.manual_seed(0)
        with importable(checkout(tmp_path / str(options is None)), options, []):
            from models import networks as official  # type: ignore[import-not-found]

            net = official.define_G(3, 3, 2, "resnet_1blocks", "instance").to(device)
        outputs.append(net(torch.linspace(-1, 1, 3 * 12 * 12, device=device).sin().view(1, 3, 12, 12)))
        assert options is None or computed_by(net) == "triton"
    assert relative_error(*outputs) < 1e-5


@pytest.mark.parametrize(
    ("flags", "generator", "discriminator"),
    [
        # unet_64 is the smallest with dropout. Its masks, and those of a ResNet in channels_last, must be
        # drawn in the checkout's order.
        pytest.param("--netG unet_64", "UnetGenerator", "NLayerDiscriminator", id="U-Net"),
        pytest.param("--netG resnet_1blocks", "ResnetGenerator", "NLayerDiscriminator", id="ResNet"),
        pytest.param(
            "--netG unet_64 --norm instance --batch_size 2 --direction BtoA",
            "UnetGenerator",
            "NLayerDiscriminator",
            id="instance norm",
        ),
        pytest.param(
            "--netG unet_32 --no_dropout --netD pixel --gan_mode lsgan",
            "UnetGenerator",
            "PixelDiscriminator",
            id="no dropout",
        ),
    ],
)
def test_pix2pix_trains_the_same_with_our_networks(
    tmp_path: Path, pairs: Path, flags: str, generator: str, discriminator: str
) -> None:
    """The networks are replaced and the step is not, which is logged."""
    folder, flags = checkout(tmp_path), f"--model pix2pix {flags}"
    ours = train(folder, pairs, flags, Options())
    assert ours[2][1:] == [
        f"{generator}: replaced by fastcyclegan's (same outputs in float64)",
        f"{discriminator}: replaced by fastcyclegan's (same outputs in float64)",
        "training step: not replaced: fastcyclegan's is for CycleGANModel, not Pix2PixModel",
    ]
    assert type(ours[0].netG).__module__ == type(ours[0].netD).__module__ == "fastcyclegan.compat.networks"
    assert_same(ours, train(folder, pairs, flags, None))


@pytest.mark.parametrize("mode", ["", "--no_dropout", "--eval"])
@pytest.mark.parametrize("model", ["pix2pix", "test"])
def test_pix2pix_translates_the_same_with_our_networks(
    tmp_path: Path, pairs: Path, model: str, mode: str
) -> None:
    """Also in training mode, in which the official test runs: with the checkout's masks and statistics."""
    folder, net = checkout(tmp_path), "--netG unet_64 --norm batch"
    trained, _, _ = train(folder, pairs, f"--model pix2pix {net}", None, epochs=1)
    trained.save_networks("latest")
    root = pairs if model == "pix2pix" else pairs / "test"
    ours, official = (
        translated(folder, root, f"--model {model} {net} {mode}", options) for options in (Options(), None)
    )
    assert len(ours) == len(official) == 2
    for our_images, images in zip(ours, official, strict=True):
        assert our_images.keys() == images.keys()
        assert all(relative_error(our_images[name], image) < 1e-9 for name, image in images.items())


def test_a_changed_unet_keeps_the_checkouts_own(tmp_path: Path, pairs: Path) -> None:
    edit = (NETWORKS, "nn.LeakyReLU(0.2, True), nn.Conv2d(input_nc or", "nn.ReLU(), nn.Conv2d(input_nc or")
    folder = checkout(tmp_path, [edit])
    model, _, logged = train(folder, pairs, "--model pix2pix --netG unet_32", Options(), epochs=1)
    assert logged[1].startswith("UnetGenerator: not replaced: its outputs differ from fastcyclegan's by")
    assert type(model.netG).__module__ == "models.networks"
