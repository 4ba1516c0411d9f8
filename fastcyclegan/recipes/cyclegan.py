"""The CycleGAN recipe: four networks, two replay pools, and the two phases of an iteration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import AUGMENT_NUMBERS, AUGMENTED
from fastcyclegan.nn.networks import build_discriminator, build_generator
from fastcyclegan.nn.torch_defaults import float32_by_default
from fastcyclegan.recipes.diffaugment import DiffAugment
from fastcyclegan.recipes.image_pool import ImagePool
from fastcyclegan.recipes.losses import BatchedLosses
from fastcyclegan.recipes.recipe import Compile, Forward, Inputs, Phase, PhaseResult, Translate, uncompiled
from fastcyclegan.reference import gradient_penalty, init_weights

GENERATORS, DISCRIMINATORS = ("G_AB", "G_BA"), ("D_A", "D_B")


def build_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Build and initialise the four networks in the official order: G_AB, G_BA, D_B, D_A.

    The order determines which initial weights a seed produces. They are in float32, whatever torch's default
    dtype is.
    """

    def initialised(net: nn.Module) -> nn.Module:
        return init_weights(net, config.init_type, config.init_gain)

    with float32_by_default():
        return {
            "G_AB": initialised(build_generator(config, config.input_nc, config.output_nc)),
            "G_BA": initialised(build_generator(config, config.output_nc, config.input_nc)),
            "D_B": initialised(build_discriminator(config, config.output_nc)),
            "D_A": initialised(build_discriminator(config, config.input_nc)),
        }


def _augment_numbers(batch: Batch) -> dict[str, Tensor]:
    """Return the random numbers [AUGMENT_NUMBERS, k, N] for the k batches that each phase augments."""
    count = len(AUGMENTED) * AUGMENT_NUMBERS
    if any(len(sample.augment) != count for sample in batch.samples):
        raise ValueError("CycleGANRecipe: augmentation needs samples of a plan with augment=True")
    drawn = torch.tensor([sample.augment for sample in batch.samples], dtype=torch.float32)
    numbers = drawn.view(-1, len(AUGMENTED), AUGMENT_NUMBERS).permute(2, 1, 0)
    return {"augment_G": numbers[:, :2], "augment_D": numbers[:, 2:]}


class CycleGANRecipe:
    """CycleGAN as a ``Recipe``. ``pools`` store fake images of each domain for later iterations.

    Each network is called once per stage. The generators are called with images of both domains (one to
    translate and, with identity losses, one that should not change), and then with each other's fake images.
    The discriminators are called with the fake images, and in their own phase with real and pooled images.
    """

    networks: tuple[str, ...] = (*GENERATORS, *DISCRIMINATORS)
    networks_title = "the four of a CycleGAN"
    # The official G_A translates A to B, and the official D_A is the discriminator for B.
    official_names: Mapping[str, str] = {"G_AB": "G_A", "G_BA": "G_B", "D_B": "D_A", "D_A": "D_B"}
    generators: tuple[str, ...] = GENERATORS
    # The discriminators' phase uses fake images made before the generators' update.
    phases_may_overlap = True

    def __init__(self, loss: LossConfig) -> None:
        self.loss = loss
        self.pools = {"A": ImagePool(loss.pool_size), "B": ImagePool(loss.pool_size)}
        self.has_identity, self.has_penalty = loss.lambda_identity > 0, loss.gan_mode == "wgangp"
        identity = ("idt_B", "idt_A") if self.has_identity else ()
        distances = ("cycle_A", "cycle_B", *identity)
        # In the order of the phases' results: B before A, except for the cycle losses.
        self.generator_losses: tuple[str, ...] = ("G_AB", "G_BA", *distances)
        self.loss_names: tuple[str, ...] = (*self.generator_losses, "D_B", "D_A")
        self.loss_panels: Mapping[str, tuple[str, ...]] = {
            "adversarial": ("G_AB", "G_BA", "D_B", "D_A"),
            "cycle and identity": distances,
        }
        self.twice_differentiated: tuple[str, ...] = DISCRIMINATORS if self.has_penalty else ()

    def new_instance(self) -> CycleGANRecipe:
        return type(self)(self.loss)

    def build_networks(self, config: ModelConfig) -> dict[str, nn.Module]:
        return build_networks(config)

    def generator(self, target: str) -> str:
        return {"A": "G_BA", "B": "G_AB"}[target]

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        losses = BatchedLosses(self.loss.gan_mode, compile_loss)
        augment = DiffAugment(self.loss.augmentations, compile_loss)
        return (
            Phase("G", GENERATORS, DISCRIMINATORS, functools.partial(self._generators, losses, augment)),
            Phase(
                "D",
                DISCRIMINATORS,
                (),
                functools.partial(self._discriminators, losses, augment),
                wants=("fake_A", "fake_B"),
                prepare=self._show_pools,
            ),
        )

    # --- Decisions on the host ------------------------------------------------------------------------------

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Decide which images the pools return and store, where wgangp interpolates, and how the
        discriminators' images are augmented.

        The decisions for the pool of fake B are made first. Raises ValueError if images are augmented, but
        the batch's plan drew no random numbers for that.
        """
        draws = {
            "B": [sample.draw_B for sample in batch.samples],
            "A": [sample.draw_A for sample in batch.samples],
        }
        numbers = {}
        for side, pairs in draws.items():
            numbers[f"pool_{side}"] = torch.tensor(self.pools[side].decide(pairs), dtype=torch.int64)
        if self.has_penalty:
            mix_B = [sample.mix_B for sample in batch.samples]
            numbers["mix_B"] = torch.tensor(mix_B, dtype=torch.float32)
            mix_A = [sample.mix_A for sample in batch.samples]
            numbers["mix_A"] = torch.tensor(mix_A, dtype=torch.float32)
        if self.loss.augmentations:
            numbers |= _augment_numbers(batch)
        return numbers

    def is_steady(self, batch: Batch) -> bool:
        """Return whether all images in the pools have the size of those in ``batch``."""
        # A fake image of B is made from an image of A, and has its size.
        fake_A = (*batch.A.shape[1:2], *batch.B.shape[2:])
        fake_B = (*batch.B.shape[1:2], *batch.A.shape[2:])
        return self.pools["A"].holds(fake_A) and self.pools["B"].holds(fake_B)

    # --- The generators' phase ------------------------------------------------------------------------------

    def _generators(
        self, losses: BatchedLosses, augment: DiffAugment, forward: Forward, inputs: Inputs
    ) -> PhaseResult:
        a, b, loss = inputs.A, inputs.B, self.loss
        if forward.in_any_order(GENERATORS):
            fake_A, fake_B, rec_A, rec_B, same = self._translated_together(forward, a, b)
        else:
            fake_A, fake_B, rec_A, rec_B, same = self._translated_in_order(forward, a, b)
        shown_B, shown_A = augment([fake_B, fake_A], inputs.numbers.get("augment_G"))
        judged = forward({"D_A": [shown_A], "D_B": [shown_B]})
        adversarial = losses.adversarial([judged["D_B"][0], judged["D_A"][0]], [True, True])
        weights, targets = [loss.lambda_A, loss.lambda_B], [a, b]
        if same:
            weights += [loss.lambda_identity * loss.lambda_B, loss.lambda_identity * loss.lambda_A]
            targets += [b, a]
        distances = losses.distances([rec_A, rec_B, *same], targets, weights)
        fakes = {"fake_A": fake_A.detach(), "fake_B": fake_B.detach()}
        return PhaseResult(torch.cat([adversarial, distances]), fakes)

    def _translated_together(
        self, forward: Forward, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Translate a and b, with one call of both generators per stage.

        Returns fake_A, fake_B, rec_A, rec_B and the list [idt_B, idt_A], which is empty without identity
        losses.
        """
        if self.has_identity:
            first = forward({"G_AB": [a, b], "G_BA": [b, a]})
        else:
            first = forward({"G_AB": [a], "G_BA": [b]})
        fake_B, *idt_B = first["G_AB"]
        fake_A, *idt_A = first["G_BA"]
        second = forward({"G_AB": [fake_A], "G_BA": [fake_B]})
        return fake_A, fake_B, second["G_BA"][0], second["G_AB"][0], [*idt_B, *idt_A]

    def _translated_in_order(
        self, forward: Forward, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Translate a and b like ``_translated_together``, but with one call after another.

        The order is the official one, because the running statistics of batch norm depend on it.
        """
        G_AB, G_BA = forward["G_AB"], forward["G_BA"]
        fake_B = G_AB(a)
        rec_A = G_BA(fake_B)
        fake_A = G_BA(b)
        rec_B = G_AB(fake_A)
        same = [G_AB(b), G_BA(a)] if self.has_identity else []
        return fake_A, fake_B, rec_A, rec_B, same

    # --- The discriminators' phase --------------------------------------------------------------------------

    def _show_pools(self, inputs: Inputs) -> Inputs:
        """Pass the fake images, which were made before the generators' update, through the pools."""
        shown = {}
        for side in ("B", "A"):
            fakes = inputs.earlier[f"fake_{side}"]
            shown[f"shown_{side}"] = self.pools[side].take(fakes, inputs.numbers[f"pool_{side}"])
        return replace(inputs, earlier=shown)

    def _discriminators(
        self, losses: BatchedLosses, augment: DiffAugment, forward: Forward, inputs: Inputs
    ) -> PhaseResult:
        pooled_A, pooled_B = inputs.earlier["shown_A"], inputs.earlier["shown_B"]
        real_B, fake_B, real_A, fake_A = augment(
            [inputs.B, pooled_B, inputs.A, pooled_A], inputs.numbers.get("augment_D")
        )
        judged = forward({"D_A": [real_A, fake_A], "D_B": [real_B, fake_B]})
        logits = [*judged["D_B"], *judged["D_A"]]
        total = losses.adversarial(logits, [True, False, True, False]).view(2, 2).sum(1)
        if self.has_penalty:
            weight = self.loss.lambda_gp
            penalty_B = gradient_penalty(forward["D_B"], real_B, fake_B, inputs.numbers["mix_B"], weight)
            penalty_A = gradient_penalty(forward["D_A"], real_A, fake_A, inputs.numbers["mix_A"], weight)
            total = total + torch.stack([penalty_B, penalty_A])
        return PhaseResult(0.5 * total)

    # --- Samples and state ----------------------------------------------------------------------------------

    def samples(self, translate: Translate, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Return both images, their translations, and the translations translated back."""
        fake_B = translate("G_AB", A)
        rec_A = translate("G_BA", fake_B)
        fake_A = translate("G_BA", B)
        rec_B = translate("G_AB", fake_A)
        return {
            **{"real_A": A, "fake_B": fake_B, "rec_A": rec_A},
            **{"real_B": B, "fake_A": fake_A, "rec_B": rec_B},
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name], device)
