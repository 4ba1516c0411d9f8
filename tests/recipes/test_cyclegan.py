"""Tests of the CycleGAN recipe: its phases, its pools, and the initial weights that a seed produces."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.nn.networks import build_discriminator, build_generator
from fastcyclegan.recipes.cyclegan import AUGMENTED, CycleGANRecipe, build_networks
from fastcyclegan.reference import init_weights
from fastcyclegan.testing import random_batch, seeded_networks

SMALL = ModelConfig(netG="resnet_0blocks", netD="pixel", ngf=2, ndf=2)


def test_phases_train_and_freeze_the_right_networks() -> None:
    phases = {phase.name: phase for phase in CycleGANRecipe(LossConfig()).phases()}
    assert list(phases) == ["G", "D"]
    assert (phases["G"].trains, phases["G"].freezes) == (("G_AB", "G_BA"), ("D_A", "D_B"))
    assert (phases["D"].trains, phases["D"].freezes) == (("D_A", "D_B"), ())


def test_seeds_give_the_official_initial_weights() -> None:
    """Networks are created in the official order G_A, G_B, D_A, D_B. Each is initialised before the next
    one is built, with the channels of its domains.
    """
    config = ModelConfig(netG="resnet_1blocks", ngf=2, ndf=2, input_nc=1)
    torch.manual_seed(5)
    builders = {
        "G_AB": lambda: build_generator(config, 1, 3),
        "G_BA": lambda: build_generator(config, 3, 1),
        "D_B": lambda: build_discriminator(config, 3),
        "D_A": lambda: build_discriminator(config, 1),
    }
    expected = {name: init_weights(build()) for name, build in builders.items()}
    torch.manual_seed(5)
    nets = build_networks(config)
    for name, net in expected.items():
        assert all(
            torch.equal(a, b) for a, b in zip(nets[name].parameters(), net.parameters(), strict=True)
        ), name


def test_the_configuration_selects_the_recipe() -> None:
    recipe = TrainConfig().make_recipe()
    assert isinstance(recipe, CycleGANRecipe)
    nets = CycleGANRecipe(model=SMALL).build_networks()
    assert set(nets) == set(recipe.networks) == set(recipe.official_names)
    assert [recipe.generator(direction) for direction in ("AtoB", "BtoA")] == list(recipe.generators)
    plotted = [name for names in recipe.loss_panels.values() for name in names]
    assert sorted(plotted) == sorted(recipe.loss_names)
    assert recipe.loss_names[: len(recipe.generator_losses)] == recipe.generator_losses


def test_every_augmented_image_has_its_own_random_numbers() -> None:
    recipe = CycleGANRecipe(LossConfig(diffaugment="color"))
    batch = random_batch(16, Plan(0, 9, 9, 2, numbers=42), 0)
    decided = recipe.decide(batch)
    numbers = torch.cat([decided["augment_G"], decided["augment_D"]], 1)
    assert numbers.shape == (7, len(AUGMENTED), 2)
    assert len(numbers.unique()) == numbers.numel()
    for n, sample in enumerate(batch.samples):
        assert torch.equal(numbers[:, :, n].T.flatten(), torch.tensor(sample.numbers))
    with pytest.raises(ValueError, match="augmentation needs samples of a plan with numbers=42"):
        recipe.decide(random_batch(16, Plan(0, 9, 9), 0))


def test_an_iteration_only_changes_the_pools_of_the_recipe() -> None:
    recipe = CycleGANRecipe(LossConfig(pool_size=2))
    before = set(vars(recipe))
    engine = Engine(recipe, seeded_networks(SMALL), OptimConfig(), torch.device("cpu"))
    engine.step(random_batch(16, Plan(0, 9, 9), 0), 2e-4)
    assert set(vars(recipe)) == before
    assert [pool.filled for pool in recipe.pools.values()] == [1, 1]
