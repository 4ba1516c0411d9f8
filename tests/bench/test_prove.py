"""The proof: what it prints and draws, and that it shows no speed where parity fails."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import prove
import pytest
from PIL import Image
from providers import Provider, Unserved

from fastcyclegan.config import ModelConfig


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "NETWORKS", ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8))


def run(*arguments: str, folder: Path) -> int:
    return prove.main([*arguments, "--size", "32", "--seconds", "3", "--output", str(folder / "proof.png")])


def test_it_holds_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_compile", folder=tmp_path) == 0
    said = capsys.readouterr().out
    assert "training at 32x32 (as asked), batch 1, resnet_1blocks, identity on; 200 and 200 pictures" in said
    for what in ("losses of iteration 1", "pictures of iteration 1", "gradients of G_AB", "way of the weights of D_A"):
        assert what in said
    assert "FAILS" not in said
    rates = {line[:18].strip(): line[18:].split() for line in said.splitlines() if line[:18].strip() in ("iterations/s", "images/s")}
    assert float(rates["images/s"][0]) == pytest.approx(2 * float(rates["iterations/s"][0]), rel=0.02)
    with Image.open(tmp_path / "proof.png") as picture:
        assert picture.size[0] > 6 * 128
        assert np.asarray(picture).std() > 10


def test_a_wrong_result_fails_and_no_speed_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_compile", "--plant-fault", folder=tmp_path) == 1
    said = capsys.readouterr().out
    assert "PARITY FAILS" in said
    assert "iterations/s" not in said
    assert not (tmp_path / "proof.png").exists()


def test_your_own_pictures(tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a machine without a compiler, which is said and no fault."""

    def no_compiler(self: Provider, device: str) -> None:
        if self.mode is not None:
            raise Unserved("no C++ compiler found")

    monkeypatch.setattr(Provider, "require", no_compiler)
    assert run("--data_A", str(dataset / "trainA"), "--data_B", str(dataset / "trainB"), folder=tmp_path) == 0
    said = capsys.readouterr().out
    # Some are held out, as in training.
    assert re.search(
        rf"; [345] and [34] pictures \(without those that training holds out\), {dataset / 'trainA'} and {dataset / 'trainB'}", said
    )
    assert "not compiled: no C++ compiler found" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data_A {0}", "--data_A and --data_B belong together"),
        ("--size 30", "--size must be a multiple of 4, at least 24, got 30"),
        ("--seconds 0", "--seconds must be more than 0"),
        ("--output {0}/nowhere/proof.png", "--output must be a .png in a folder that is there"),
        ("--output proof.jpg", "--output must be a .png"),
    ],
)
def test_bad_arguments_are_named(arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(arguments.format(tmp_path).split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_pictures_that_are_not_there_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    folders = ["--data_A", str(tmp_path / "empty"), "--data_B", str(tmp_path / "missing")]
    assert run(*folders, folder=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
