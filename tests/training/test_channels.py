"""Tests of networks with any number of channels: trained on the caller's tensors, and refused for files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastcyclegan import CycleGAN, Generator, cli, load_generator
from fastcyclegan.errors import UserError
from fastcyclegan.testing import assert_parity, parameters_that_count
from tests.models import TINY, same

FOUR_TO_TWO: dict[str, Any] = {
    **TINY,
    "input_nc": 4,
    "output_nc": 2,
    "lambda_identity": 0,
    "precision": "fp32",
}
FILES = r"images from files have 3( channels)? \(colour\) or 1 \(gray\): pass "


def images(channels: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, channels, 16, 16, generator=generator) * 2 - 1 for _ in range(3)]


A, B = images(4, 1), images(2, 2)


@pytest.mark.parametrize("impl", ["auto", "cpp", "triton"])
def test_the_kernels_compute_networks_of_any_channels(impl: str) -> None:
    torch.manual_seed(0)
    net = Generator(4, 2, ngf=4, n_blocks=1, impl="reference")
    nets = [Generator(4, 2, ngf=4, n_blocks=1, impl=impl), net, copy.deepcopy(net).double()]
    nets[0].load_state_dict(net.state_dict())
    outputs = [each(A[0].to(each.model[1].weight.dtype)) for each in nets]
    assert_parity("output", *outputs, torch.float32)
    for y in outputs:
        y.square().sum().backward()
    for name in parameters_that_count(net):
        assert_parity(name, *(each.get_parameter(name).grad for each in nets), torch.float32)


@pytest.mark.parametrize("netG", ["resnet_1blocks", "unet_128"])
def test_training_saves_loads_and_resumes(tmp_path: Path, netG: str) -> None:
    """A run in a folder, with sample grids, continues as one that was never stopped, and is shared."""
    side = 128 if netG == "unet_128" else 16
    settings = {**FOUR_TO_TWO, "netG": netG, "crop_size": side, "load_size": side, "display_freq": 1}
    a, b = ([torch.nn.functional.interpolate(x, (side, side)) for x in loader] for loader in (A, B))
    whole = CycleGAN(**settings)
    whole.fit(a, b)
    first = CycleGAN(**settings)
    first.fit(a, b, folder=tmp_path / "run", n_epochs_decay=0)
    assert list((tmp_path / "run" / "samples").glob("*.png"))
    first.save(tmp_path / "kept")
    for folder in ("run", "kept"):
        again = CycleGAN.load(tmp_path / folder)
        assert same(first, again)
        again.fit(a, b, n_epochs_decay=1)
        assert same(whole, again)
    G = load_generator(tmp_path / "kept")
    translated = first.translate(a[0][0])
    assert translated.shape == (2, side, side)
    assert torch.equal(first.translate(translated, "BtoA"), first.translate(b[0] * 0 + translated, "BtoA")[0])
    torch.testing.assert_close(G(a[0])[0], translated)
    G.save_pretrained(tmp_path / "shared")
    torch.testing.assert_close(load_generator(tmp_path / "shared")(a[0]), G(a[0]))


def test_images_from_files_are_refused_before_anything_is_written(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input_nc", "4", "--output_nc", "2", "--lambda_identity", "0", "--checkpoints_dir"]
    for more in (["--dataroot", str(dataset)], [], ["--dry_run"]):
        assert cli.train([*flags, str(tmp_path / "runs"), *more]) == 2
        output = capsys.readouterr()
        wanted = "images from files have 3 channels (colour) or 1 (gray): pass loaders of your own to"
        wanted = f"error: input_nc is 4, but {wanted} fit in Python\n"
        assert (output.out, output.err) == ("", wanted)
    model = CycleGAN(**{**FOUR_TO_TWO, "input_nc": 3})
    with pytest.raises(UserError, match=f"output_nc is 2, but {FILES}"):
        model.fit(dataset, folder=tmp_path / "runs" / "r")
    assert not (tmp_path / "runs").exists()


def test_loaders_must_have_the_channels_of_the_networks() -> None:
    with pytest.raises(UserError, match=r"images of domain B must be tensors \[N, 2, H, W\]"):
        CycleGAN(**FOUR_TO_TWO).fit(A, A)
    with pytest.raises(
        UserError, match=r"the identity loss needs equal channel counts.* --lambda_identity 0"
    ):
        CycleGAN(**{**FOUR_TO_TWO, "lambda_identity": 0.5})


def test_only_tensors_and_arrays_are_translated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image of a file cannot have the channels, whether those of the input or of the output differ."""
    model = CycleGAN(**FOUR_TO_TWO)
    array = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    assert model.translate(array).shape == (12, 10, 2)
    file = tmp_path / "a.png"
    Image.new("RGB", (12, 10)).save(file)
    for image in (file, Image.open(file)):
        with pytest.raises(
            UserError, match=f"translates images of 4 channels to 2, but {FILES}float tensors"
        ):
            model.translate(image)
        with pytest.raises(
            UserError, match=f"translates images of 3 channels to 2, but {FILES}float tensors"
        ):
            CycleGAN(**{**FOUR_TO_TWO, "input_nc": 3}).translate(image)
    model.save(tmp_path / "kept")
    out = tmp_path / "out"
    assert (
        cli.translate(["--weights", str(tmp_path / "kept"), "--input", str(file), "--output", str(out)]) == 2
    )
    assert "error: the network translates images of 4 channels to 2, but" in capsys.readouterr().err
    assert not out.exists()
