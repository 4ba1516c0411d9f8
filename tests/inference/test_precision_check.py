"""Tests of the comparison of bf16 with fp32 in 8-bit images, and of the choice that is based on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastcyclegan import CycleGAN
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.cli import translate
from fastcyclegan.inference import precision_check
from fastcyclegan.inference.precision_check import (
    agreement,
    check_images,
    choose_precision,
    gains_from_bf16,
    precision_for,
)
from fastcyclegan.nn.networks import Generator
from tests.conftest import write_images
from tests.models import TINY

CPU = torch.device("cpu")


@pytest.fixture
def net() -> Generator:
    """Return a generator whose images are nearly gray, so that the rounding of bf16 does not show."""
    torch.manual_seed(0)
    net = Generator(ngf=4, n_blocks=1).eval()
    with torch.no_grad():
        net.model[-2].weight.mul_(0.02)
    return net


@pytest.fixture
def bf16_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choice the same on every processor."""
    monkeypatch.setattr(precision_check, "has_bf16", lambda device: True)
    monkeypatch.setattr(precision_check, "computed_by", lambda net: "cpp")
    monkeypatch.setattr(precision_check, "processor", lambda: "amx")


def wild(net: Generator) -> Generator:
    """Give ``net`` a last layer so large that the rounding of bf16 shows in its images."""
    with torch.no_grad():
        net.model[-2].weight.mul_(5000)
    return net


def test_agreement() -> None:
    zeros = np.zeros((2, 5, 1), dtype=np.uint8)
    other = zeros.copy()
    other[0, :3, 0] = [1, 2, 255]
    found = agreement([(zeros, other)])
    assert (found.share, found.largest, found.is_enough) == (0.8, 255, False)
    assert found.percent == "80.00 %"
    assert agreement([(zeros, zeros + 1)]).is_enough
    assert agreement([(zeros, None)]).share == 0
    assert agreement([(None, None)]).share == 1
    almost = np.zeros((100, 1000, 1), dtype=np.uint8)
    almost[0, 0, 0] = 9
    assert agreement([(almost, np.zeros_like(almost))]).percent == "99.99 %"


@pytest.mark.parametrize(("channels", "multiple", "side"), [(3, 4, 128), (1, 4, 128), (5, 256, 256)])
def test_the_test_images_are_always_the_same(channels: int, multiple: int, side: int) -> None:
    images = check_images(channels, multiple)
    assert [tuple(image.shape) for image in images] == [(side, side, channels)] * 2
    for image, again in zip(images, check_images(channels, multiple), strict=True):
        assert torch.equal(image, again)
        assert image.float().std() > 15


def test_the_choice_depends_on_the_weights(net: Generator, bf16_is_faster: None) -> None:
    precision, why = choose_precision(net, CPU, False)
    assert precision == "bf16"
    assert why.endswith("% of the values within 1/255 of fp32")
    precision, why = choose_precision(wild(net), CPU, False)
    assert precision == "fp32"
    assert why.startswith("in bf16, only ")


def test_bf16_is_chosen_only_where_it_is_faster(net: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_check, "has_bf16", lambda device: False)
    assert choose_precision(net, CPU, True) == ("fp32", "")
    monkeypatch.setattr(precision_check, "has_bf16", lambda device: True)
    monkeypatch.setattr(precision_check, "processor", lambda: "avx512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    reference = Generator(ngf=2, n_blocks=0, impl="reference")
    assert not gains_from_bf16(reference, CPU, compiled=False)
    assert gains_from_bf16(reference, CPU, compiled=True)
    assert gains_from_bf16(Generator(ngf=2, n_blocks=0, impl="cpp"), CPU, compiled=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert gains_from_bf16(reference, CPU, compiled=False)
    # The same processor, limited by ATEN_CPU_CAPABILITY.
    monkeypatch.setattr(precision_check, "processor", lambda: "avx2")
    assert not gains_from_bf16(reference, CPU, compiled=True)


def test_the_choice_is_kept_until_the_weights_change(
    net: Generator, bf16_is_faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []
    choose = choose_precision
    monkeypatch.setattr(
        precision_check, "choose_precision", lambda net, *a, **k: calls.append(net) or choose(net, *a, **k)
    )
    assert [precision_for(net, CPU, "auto") for _ in range(3)] == ["bf16"] * 3
    assert len(calls) == 1
    wild(net)
    assert precision_for(net, CPU, "auto") == "fp32"
    assert precision_for(net, CPU, "bf16") == "bf16"
    assert len(calls) == 2


def test_the_python_api_chooses_as_the_program_does(bf16_is_faster: None) -> None:
    model = CycleGAN(**TINY)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    first = model.translate(image)
    assert np.abs(first.astype(int) - CycleGAN(**TINY, precision="fp32").translate(image)).max() <= 1


# --- translate.py -------------------------------------------------------------------------------------------


def _translated(folder: Path, net: Generator, *options: str) -> int:
    save_weights(folder / "latest_net_G_A.pth", net.state_dict())
    write_images(folder / "in", 3, size=(24, 16))
    files = ["--weights", str(folder / "latest_net_G_A.pth"), "--input", str(folder / "in")]
    return translate([*files, "--output", str(folder / "out"), "--device", "cpu", *options])


def test_the_program_says_which_precision_it_chose(
    net: Generator, tmp_path: Path, bf16_is_faster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _translated(tmp_path, net) == 0
    assert "on cpu in bf16 (" in capsys.readouterr().out
    assert _translated(tmp_path, wild(net)) == 0
    assert "on cpu in fp32 (in bf16, only " in capsys.readouterr().out
    assert _translated(tmp_path, net, "--precision", "fp32") == 0
    assert "on cpu in fp32, using" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_wild", "precision", "code"), [(False, "bf16", 0), (True, "bf16", 1), (True, "fp32", 0)]
)
def test_check(
    net: Generator,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_wild: bool,
    precision: str,
    code: int,
) -> None:
    if is_wild:
        wild(net)
    assert _translated(tmp_path, net, "--check", "--precision", precision) == code
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("check of 3 images: "))
    assert "% of the values are within 1/255 of fp32, and the largest difference is" in line
    assert "an image takes: fp32 0." in line
    assert "convolutions in fp32: " in out
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_without_a_compiler_images_are_translated_uncompiled(
    net: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fastcyclegan.inference.load_translator.why_not_compiled", lambda device: "no C++ compiler found"
    )
    assert _translated(tmp_path, net, "--compile", "--precision", "fp32") == 0
    assert "--compile: no C++ compiler found; images are translated uncompiled" in capsys.readouterr().out
