"""Tests that the right network classes of a checkout are replaced.

The replacements are also tested on the Triton kernels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fastcyclegan.nn.networks import computed_by
from fastcyclegan.official.patch_model import Options
from fastcyclegan.testing import relative_error
from tests.official.training import MODEL, NETWORKS, STEP, checkout, importable, train


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
