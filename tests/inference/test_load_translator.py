"""Loading a generator to translate with, as flags choose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.console import QuietConsole
from fastcyclegan.errors import UserError
from fastcyclegan.inference import load_translator as load_translator_module
from fastcyclegan.inference.load_translator import GeneratorChoice, load_translator
from fastcyclegan.inference.translate_folder import TranslateConfig
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.settings.evaluate import EvaluateConfig


class Listening(QuietConsole):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def load(weights: Path, **options: Any) -> tuple[Any, str]:
    return load_translator(GeneratorChoice(weights, device="cpu", **options), Listening())


def test_the_choice_is_that_of_the_flags_of_a_command() -> None:
    """evaluate.py lacks some of the flags, which then have their defaults."""
    translate = TranslateConfig(
        Path("a"), Path("b"), Path("c"), direction="BtoA", seed=0, compile=True, check=True
    )
    chosen = GeneratorChoice.of(translate)
    assert chosen == GeneratorChoice(Path("a"), "BtoA", seed=0, compile=True, check=True)
    evaluate = EvaluateConfig(weights=Path("a"), epoch="best", ema=True, no_dropout=True)
    chosen = GeneratorChoice.of(evaluate)
    assert chosen == GeneratorChoice(Path("a"), epoch="best", ema=True, no_dropout=True, precision="fp32")


def test_a_single_file(weights: Path) -> None:
    translator, summary = load(weights, precision="fp32")
    assert summary == f"with {weights} on cpu in fp32"
    assert (translator.engine.precision, translator.seed, translator.has_masks) == ("fp32", 0, False)
    image = torch.zeros(9, 10, 3, dtype=torch.uint8)
    assert translator([image])[0].shape == (9, 10, 3)


def test_the_precision_is_chosen_and_explained(weights: Path) -> None:
    translator, summary = load(weights)
    assert f"on cpu in {translator.engine.precision} (" in summary or summary.endswith("in fp32")


def test_the_mode_of_a_network_that_translates_as_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "latest_net_G.pth"
    save_weights(file, UnetGenerator(ngf=2, num_downs=6, norm="batch", use_dropout=True).state_dict())
    drops, _ = load(file, seed=7)
    assert (drops.has_masks, drops.seed) == (True, 7)
    for options in ({"no_dropout": True}, {"eval": True}):
        translator, _ = load(file, **options)
        assert not translator.has_masks


def test_two_generators_in_a_file_need_a_key(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = {name: Generator(ngf=2, n_blocks=0).state_dict() for name in ("G_A", "G_B")}
    torch.save(nets, tmp_path / "both.pth")
    with pytest.raises(UserError, match="contains 2 generators; set key to one of"):
        load(tmp_path / "both.pth")
    assert load(tmp_path / "both.pth", key="G_B")[1].startswith("with ")


def test_what_cannot_translate_images_of_files(tmp_path: Path, weights: Path) -> None:
    save_weights(tmp_path / "four.pth", Generator(4, 4, ngf=2, n_blocks=0).state_dict())
    with pytest.raises(UserError, match="translates images of 4 channels to 4"):
        load(tmp_path / "four.pth")
    with pytest.raises(UserError, match="none: no such file or folder"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="is a single file, so direction, epoch and ema do not apply"):
        load(weights, direction="AtoB")


def test_networks_that_are_not_compiled_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_translator_module, "why_not_compiled", lambda device: "")  # importing takes long
    torch.manual_seed(0)
    file = tmp_path / "latest_net_G.pth"
    save_weights(file, UnetGenerator(ngf=2, num_downs=6, norm="batch", use_dropout=True).state_dict())
    console = Listening()
    load_translator(GeneratorChoice(file, device="cpu", compile=True), console)
    assert any(line.startswith("--compile: the masks of dropout depend") for line in console.lines)
