"""Recipes are compared with their official training steps: a small GAN of pairs is added to the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench import prove
from bench.baselines import BASELINES_BY_RECIPE, Baseline, compared_config, plain_networks
from bench.parity import EXACT, Judge, require
from fastcyclegan import reference
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.recipes import registry
from fastcyclegan.recipes.recipe import Inputs, PhaseResult
from fastcyclegan.testing import random_batch
from tests.bench.parts import ROOT
from tests.bench.small_steps import UNCOMPILED, step_of
from tests.recipes.toys import PairsToy, Pix2PixOrder, pix2pix_step

NAME = Pix2PixOrder.name


# --- The row of a recipe, as a new one would be written -----------------------------------------------------


def plain(config: TrainConfig) -> dict[str, nn.Module]:
    model: Any = config.model
    return {
        "G": reference.Generator(ngf=model.ngf, n_blocks=1),
        "D": reference.Discriminator(input_nc=6, ndf=model.ndf),
    }


class PlainOrder:
    """``pix2pix_step`` as an official training step. It keeps all generated images."""

    def __init__(self, nets: Mapping[str, nn.Module], config: TrainConfig, lr: float) -> None:
        self.nets, self.images = nets, list[Tensor]()
        self.by_name = {
            name: torch.optim.Adam(net.parameters(), lr, (0.5, 0.999)) for name, net in nets.items()
        }
        self.optimizers: list[torch.optim.Optimizer] = list(self.by_name.values())
        nets["G"].register_forward_hook(lambda net, inputs, result: self.images.append(result.detach()))

    def run(self, batch: Batch) -> Mapping[str, Tensor]:
        return pix2pix_step(self.nets, self.by_name, batch.A, batch.B, Pix2PixOrder.rounds)

    def state(self) -> Any:
        return []

    def fakes(self, count: int) -> Tensor:
        return torch.cat(self.images)[:count][None]

    def mark(self, wrap: Callable[..., Any]) -> None:
        raise NotImplementedError


def translated(engine: Engine) -> Callable[[int], Tensor]:
    """Keep the images that the phase "translate" returns. Without a CUDA graph, each iteration calls it."""
    images: list[Tensor] = []
    first, *others = engine.phases

    def run(forward: Any, inputs: Inputs) -> PhaseResult:
        result = first.run(forward, inputs)
        images.append(result.outputs["fake"].detach().clone())
        return result

    engine.phases = (replace(first, run=run), *others)
    return lambda count: torch.cat(images)[:count][None]


TINY = {"model": {"netG": "resnet_1blocks", "ngf": 8, "ndf": 8}}


@pytest.fixture(autouse=True)
def _pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", [])
    for recipe in (Pix2PixOrder, PairsToy):
        registry.register_recipe(recipe)
    monkeypatch.setitem(BASELINES_BY_RECIPE, NAME, Baseline(plain, PlainOrder, translated, TINY))


@pytest.fixture
def pairs() -> Judge:
    config = compared_config(NAME)
    plan = Plan(0, 9, 9, paired=True)
    return Judge(plain_networks(config), [random_batch(32, plan, n) for n in range(2)], "cpu", config)


def run(*arguments: str, folder: Path) -> int:
    options = ["--no_compile", "--size", "32", "--seconds", "1", "--output", str(folder / "proof.png")]
    return prove.main(["--model", NAME, *options, *arguments])


# --- Parity and speed of the new recipe ---------------------------------------------------------------------


def test_a_row_of_the_table_is_all_that_parity_needs(pairs: Judge) -> None:
    assert pairs.float64_difference() < EXACT
    compared = pairs.judge("ours", step_of("ours", pairs))
    require("ours", compared)
    assert {"gradients of G", "weight change of D", "images of iteration 2"} <= {d.quantity for d in compared}


def test_a_fault_in_the_training_of_pairs_is_noticed(pairs: Judge) -> None:
    step = step_of("ours", pairs, fault=True)
    failed = {d.quantity for d in pairs.judge("ours", step) if not d.passes}
    assert {"losses of iteration 1", "images of iteration 1"} <= failed


class TwoRounds(PlainOrder):
    """Trains the discriminator twice, which the recipe does not."""

    def run(self, batch: Batch) -> Mapping[str, Tensor]:
        return pix2pix_step(self.nets, self.by_name, batch.A, batch.B, 2)


def test_another_official_order_is_noticed(pairs: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES_BY_RECIPE, NAME, Baseline(plain, TwoRounds, translated, TINY))
    assert pairs.float64_difference() > 10 * EXACT


@pytest.mark.parametrize("name", UNCOMPILED)
def test_every_provider_trains_the_recipe(pairs: Judge, name: str) -> None:
    step = step_of(name, pairs)
    require(name, pairs.judge(name, step))
    assert set(step.nets) == set(Pix2PixOrder.networks)


def test_a_profile_shows_where_the_discriminator_is_trained(pairs: Judge) -> None:
    step, called = step_of("ours", pairs), []

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        called.append(function)
        return function

    step.mark(wrap)
    assert len(called) == Pix2PixOrder.rounds


# --- The program --------------------------------------------------------------------------------------------


def test_prove_compares_and_times_a_recipe_of_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder=tmp_path) == 0
    logged = capsys.readouterr().out
    assert f"training {Pix2PixOrder.title} at 32x32" in logged
    assert "; 200 pairs (not counting held-out images) from the built-in shapes" in logged
    assert "weight change of D" in logged
    assert "iterations/s" in logged
    assert "FAILS" not in logged
    with Image.open(tmp_path / "proof.png") as image:
        # A, and its translations by both: there is no translation of B.
        assert image.size[0] > 3 * 128
        assert np.asarray(image).std() > 10


def test_prove_shows_no_speed_of_a_faulty_recipe_of_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--plant-fault", folder=tmp_path) == 1
    logged = capsys.readouterr().out
    assert "PARITY FAILS" in logged
    assert "iterations/s" not in logged
    assert not (tmp_path / "proof.png").exists()


def noise(path: Path, width: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def silent(line: str) -> None:
    pass


def test_pairs_are_read_from_one_folder_or_from_two(tmp_path: Path) -> None:
    for n in range(4):
        noise(tmp_path / "joined" / "train" / f"{n}.png", 96, n)
        noise(tmp_path / "A" / f"{n}.png", 48, n)
        noise(tmp_path / "B" / f"{n}.png", 48, 10 + n)
    noise(tmp_path / "joined" / "test" / "0.png", 96, 20)
    folders = [str(tmp_path / name) for name in ("joined", "A", "B")]
    config = compared_config(NAME)
    for flags, count in (
        (["--dataroot", folders[0]], 4),
        (["--data_A", folders[1], "--data_B", folders[2]], 3),
    ):
        batches, origin = prove.batches_of(prove.parse(flags), config, 32, silent)
        assert origin.startswith(f"{count} pairs ")
        for batch in batches:
            (a,), (b,) = batch.paths_A, batch.paths_B
            assert Path(a).name == Path(b).name
            assert not torch.equal(batch.A, batch.B)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            PairsToy.name,
            "there is no official training step to compare toy with; there is one for cycle_gan, pix2pix,"
            f" {NAME}",
        ),
        ("cycle_gun", "--model: there is no recipe 'cycle_gun'; did you mean cycle_gan?"),
    ],
)
def test_only_recipes_with_an_official_training_step_are_compared(
    model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", model, folder=tmp_path) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"error: {message}\n")
    assert not list(tmp_path.iterdir())


def test_single_images_must_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in images are two domains."""
    monkeypatch.setattr(PairsToy, "layouts", ("single",))
    monkeypatch.setitem(BASELINES_BY_RECIPE, PairsToy.name, Baseline(plain, PlainOrder, translated))
    assert run("--model", PairsToy.name, folder=tmp_path) == 2
    message = "--model toy trains on single images: give their folder as --dataroot"
    assert capsys.readouterr().err == f"error: {message}\n"


# --- Nothing else knows a recipe ----------------------------------------------------------------------------

# The table, its rows, and what measures the networks or the losses of one recipe.
OF_ONE_RECIPE = {
    "baselines.py",
    "cyclegan_baseline.py",
    "pix2pix_baseline.py",
    "official_order.py",
    "bench_counts.py",
    "bench_generator.py",
    "bench_start_up.py",
    "bench_tiles.py",
    "bench_train_step.py",
    "bench_translate.py",
    "built_in_quality.py",
    "counts.py",
    "gpu_options.py",
    "gpu_stages.py",
    "loss_curves.py",
    "parity.py",
    "profile_step.py",
}
NAMES = re.compile(
    r"(?<![a-z])cycle_?gan|pix2pix|\b(G_AB|G_BA|D_A|D_B|fake_[AB]|pool_size|lambda_\w+)\b", re.IGNORECASE
)


def test_only_listed_files_of_the_benches_know_a_recipe() -> None:
    known = {path.name for path in (ROOT / "bench").glob("*.py") if NAMES.search(path.read_text())}
    assert known == OF_ONE_RECIPE
