"""Tests of the Python classes of recipes that make images from noise, or that translate in one direction."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastcyclegan import CycleGAN, UserError, cli, load_generator, model_class, register_recipe
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.recipes import registry
from fastcyclegan.recipes.recipe import Compile, Phase, PhaseResult, uncompiled
from fastcyclegan.settings.engine import EngineConfig
from fastcyclegan.settings.optim import OptimConfig
from fastcyclegan.tensor_files import load_tensors, save_tensors
from fastcyclegan.testing import random_batch, relative_error
from tests.recipes.toys import NoiseToy, PairsToy, Pix2PixOrder

SMALL: dict[str, Any] = {
    "load_size": 20,
    "crop_size": 16,
    "device": "cpu",
    "loader": "folder",
    "num_threads": 0,
    "max_iters": 4,
}


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_registered", [])
    monkeypatch.chdir(tmp_path)
    for recipe in (NoiseToy, Pix2PixOrder):
        register_recipe(recipe)
    for n in range(5):
        pixels = np.random.default_rng(n).integers(0, 255, (24, 48, 3), np.uint8)
        Path("pairs/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(f"pairs/train/{n}.png")


def test_a_recipe_makes_images_from_noise() -> None:
    model = model_class("noise_toy")(**SMALL)
    assert model.config.data.dataset_mode == "single"
    model.fit("pairs/train")
    images = model.sample(3, seed=1)
    assert [image.size for image in images] == [(16, 16)] * 3
    again = model.sample(4, seed=1)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, again, strict=False))
    assert not np.array_equal(np.asarray(images[0]), np.asarray(images[1]))
    assert not np.array_equal(np.asarray(images[0]), np.asarray(model.sample(1, seed=2)[0]))
    with pytest.raises(UserError, match=r"^NoiseToy does not translate images; its class"):
        model.translate(images[0])
    with pytest.raises(UserError, match=r"^sample: count must be an integer of at least 1, got 0$"):
        model.sample(0)
    with pytest.raises(UserError, match=r"^fit: NoiseToy trains on single images, so it takes one folder"):
        model.fit("pairs", "pairs")
    with torch.no_grad():
        model.networks["N"][0].weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"^the networks of NoiseToy give no numbers$"):
        model.sample()


def test_random_numbers_of_a_recipe_make_its_runs_exact(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model noise_toy --data pairs/train --load_size 20 --crop_size 16 --device cpu --num_threads 0"
    for name, length in (("whole", 8), ("parts", 5)):
        assert (
            cli.train([*flags.split(), "--loader", "folder", "--name", name, "--max_iters", str(length)]) == 0
        )
    assert cli.train("--continue_train --name parts --max_iters 8".split()) == 0
    whole, parts = (load_tensors(Path("runs", name, "latest_net_N.pth")) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    capsys.readouterr()
    assert cli.translate("--weights runs/whole --input pairs/train --output out --device cpu".split()) == 2
    assert capsys.readouterr().err == (
        "error: NoiseToy does not translate images; its class makes them with sample in Python\n"
    )


def test_what_a_recipe_carries_is_saved_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pix2PixOrder, "rounds", 2)  # then Adam takes two steps of D in every iteration
    networks = {"netG": "resnet_1blocks", "ngf": 2, "ndf": 2, "netD": "n_layers", "n_layers_D": 1}
    model = model_class("pix2pix_order")(**SMALL, **networks)
    model.fit("pairs", folder="runs/run")
    state = load_tensors(Path("runs/run/state.pt"))
    assert state["recipe"] == {"seen": 4}
    model.fit(max_iters=6)
    assert model.iteration == 6
    loaded = model_class("pix2pix_order").from_run("runs/run")
    loaded.fit(max_iters=6)
    assert loaded._trainer is not None
    assert loaded._trainer.run.engine.recipe.state_dict() == {"seen": 6}
    for wrong in ({"seen": "four"}, {}, {"seen": 4, "more": 1}):
        save_tensors(Path("runs/run/state.pt"), {**state, "recipe": wrong})
        with pytest.raises(UserError, match=r"^runs/run/state.pt: recipe"):
            model_class("pix2pix_order").from_run("runs/run")


def test_cyclegan_has_the_methods_of_every_class() -> None:
    assert CycleGAN.from_run.__func__ is CycleGAN.load.__func__
    with pytest.raises(UserError, match=r"^CycleGAN makes no images from noise"):
        CycleGAN(netG="resnet_0blocks", ngf=2, ndf=2, device="cpu").sample()


class Wrong(NoiseToy):
    """A recipe with a faulty phase, and a network without convolutions."""

    name = "wrong"
    directions = {"AtoB": "N"}  # noqa: RUF012

    def build_networks(self) -> dict[str, nn.Module]:
        return {"N": nn.Sequential(nn.Flatten(), nn.Linear(self.SIZE, 3))}

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        (phase,) = super().phases()
        return (dataclasses.replace(phase, trains=("M",)),)


def test_faults_of_a_recipe_are_named_when_it_starts() -> None:
    register_recipe(Wrong)
    model = model_class("wrong")(**SMALL)
    message = r"^the recipe wrong: networks of phase N must be among N, got M$"
    with pytest.raises(UserError, match=message):
        model.fit("pairs/train")
    with pytest.raises(UserError, match=r"^Sequential cannot translate images: it has no convolutions$"):
        model.translate("pairs/train/0.png")


def test_images_are_padded_to_the_multiple_that_the_networks_need() -> None:
    class Multiple(PairsToy):
        name = "multiple"

        @property
        def requirements(self) -> ImageRequirements:
            return ImageRequirements(size_multiple=16, least_side=16)

    register_recipe(Multiple)
    model, sizes = model_class("multiple")(**SMALL), list[torch.Size]()
    model.networks["N"].register_forward_pre_hook(lambda net, args: sizes.append(args[0].shape[2:]))
    assert model.translate(Image.new("RGB", (20, 33))).size == (20, 33)
    assert sizes == [torch.Size((48, 32))]
    model.fit("pairs", folder="runs/run")
    assert load_generator("runs/run").size_multiple == 16


STATES: list[tuple[str, Any, str]] = [
    ("a list that grows", lambda seen: [0] * seen, "must have 0 entries, got 1"),
    ("another key", lambda seen: {"k": 0} if seen else {}, "k is unexpected"),
    ("a number that becomes another kind", lambda seen: 0.5 if seen else 0, "must be an integer, got 0.5"),
    ("an array", lambda seen: np.zeros(2), "must be a plain value or a tensor, got a"),
    ("a set", lambda seen: {1}, "must be a plain value or a tensor, got a set"),
]
TINY: dict[str, Any] = {"netG": "resnet_0blocks", "ngf": 2, "ndf": 2, "netD": "pixel"}


@pytest.mark.parametrize(("what", "value", "message"), STATES, ids=[row[0] for row in STATES])
def test_a_state_that_could_not_be_loaded_is_refused_at_once(what: str, value: Any, message: str) -> None:
    class Carrying(Pix2PixOrder):
        name = "carrying"

        def state_dict(self) -> dict[str, Any]:
            return {"log": value(self.seen)}

    register_recipe(Carrying)
    model = model_class("carrying")(**SMALL, **TINY)
    with pytest.raises(
        UserError, match=r"^the recipe carrying: what it carries could not be loaded ag"
    ) as error:
        model.fit("pairs")
    assert message in str(error.value)
    assert model.iteration <= 1


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"wants": ("fakes",)}, "phase G wants fakes, but the phases before it return fake"),
    ({"trains": "G"}, "trains of phase G must be a tuple of names"),
    ({"freezes": ("D", "G")}, "phase G both trains and freezes G"),
    ({"losses": ("G_GAN", "lr")}, "phase G has a loss called lr, as another logged value is"),
    ({"losses": ("G_GAN",)}, "phase G names 1 losses (G_GAN), but returns a tensor of shape [2]"),
    ({"run": lambda forward, inputs: None}, "phase G returns a NoneType, not a PhaseResult"),
    (
        {"run": lambda forward, inputs: PhaseResult(torch.zeros(2))},
        "the losses of phase G do not depend on G, which it trains",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_mistakes_in_phases_are_one_line(change: dict[str, Any], message: str) -> None:
    class Mistaken(Pix2PixOrder):
        name = "mistaken"

        def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
            *others, last = super().phases()
            return (*others, dataclasses.replace(last, **change))

    register_recipe(Mistaken)
    with pytest.raises(UserError) as error:
        model_class("mistaken")(**SMALL, **TINY).fit("pairs")
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)


def test_a_phase_that_forgets_to_freeze_does_not_train_another_network() -> None:
    class Forgetful(Pix2PixOrder):
        name = "forgetful"

        def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
            return tuple(dataclasses.replace(phase, freezes=()) for phase in super().phases())

    register_recipe(Forgetful)
    models = [model_class(name)(**SMALL, **TINY) for name in ("forgetful", "pix2pix_order")]
    for model in models:
        model.fit("pairs")
    for name, net in models[0].networks.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, models[1].networks[name].state_dict()[key]), f"{name}.{key}"


def test_a_phase_can_be_repeated_less_often_when_a_run_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pix2PixOrder, "rounds", 3)
    model_class("pix2pix_order")(**SMALL, **TINY).fit("pairs", folder="runs/run")
    monkeypatch.setattr(Pix2PixOrder, "rounds", 1)
    model = model_class("pix2pix_order").from_run("runs/run")
    model.fit(max_iters=6)
    assert model.iteration == 6


def test_a_network_can_say_that_it_treats_each_image_separately() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x).tanh()
            return y

    class Own(PairsToy):
        name = "own"

        def build_networks(self) -> dict[str, nn.Module]:
            return {"N": Net()}

    register_recipe(Own)
    with pytest.raises(UserError, match=r"^--micro_batch would change the result: N is of type Net"):
        model_class("own")(**SMALL, batch_size=3, micro_batch=2).fit("pairs")
    Net.images_are_separate = True  # type: ignore[attr-defined]
    engines = []
    for options in (EngineConfig(), EngineConfig(micro_batch=2)):
        torch.manual_seed(0)
        nets = {"N": Net().double()}
        engines.append(Engine(Own(), nets, OptimConfig(), torch.device("cpu"), options=options))
    for n in range(4):
        batch = random_batch(16, Plan(0, 9, 9, 3, paired=True), n, dtype=torch.float64)
        one, other = (engine.step(batch, 2e-4) for engine in engines)
        assert relative_error(one, other) < 1e-9
    for one, other in zip(*(engine.nets["N"].parameters() for engine in engines), strict=True):
        assert relative_error(one, other) < 1e-9


def test_a_row_of_samples_is_checked_before_anything_is_written() -> None:
    rows: list[tuple[Any, str]] = [
        (lambda self, translate, images: {"x": translate("H", images["A"])}, "samples calls H, which is not"),
        (lambda self, translate, images: None, "samples must return images"),
        (lambda self, translate, images: {}, "samples must return images"),
    ]
    for n, (samples, message) in enumerate(rows):
        register_recipe(type(f"Row{n}", (Pix2PixOrder,), {"name": f"row{n}", "samples": samples}))
        with pytest.raises(UserError, match=rf"^the recipe row{n}: {message}"):
            model_class(f"row{n}")(**SMALL, **TINY).fit("pairs", folder="runs/run")
        assert not Path("runs").exists()


def test_directions_do_not_apply_to_loaders() -> None:
    model = CycleGAN(**SMALL, **TINY, direction="BtoA")
    with pytest.raises(UserError, match=r"^fit: --direction BtoA swaps folders, but not loaders"):
        model.fit([(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))])
