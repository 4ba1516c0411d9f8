"""Small recipes for tests: a translator of pairs or single images, and a GAN in the order of pix2pix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.data.batch import Batch
from fastcyclegan.recipes.losses import widened
from fastcyclegan.recipes.recipe import (
    Compile,
    Forward,
    Inputs,
    Phase,
    PhaseResult,
    Recipe,
    Translate,
    uncompiled,
)
from fastcyclegan.settings.data import Direction, Layout
from fastcyclegan.settings.networks import ModelConfig
from fastcyclegan.settings.recipe import LossSettings, ModelSettings


@dataclass(frozen=True)
class ToyModel(ModelSettings):
    #: Number of channels of the hidden layer.
    width: int = 4


@dataclass(frozen=True)
class ToyLoss(LossSettings):
    #: Weight of the L1 distance.
    lambda_toy: float = 2.0


def small_network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh()
    )


class PairsToy(Recipe):
    """Translate A to B by their L1 distance; with single images, reproduce them."""

    name = "toy"
    Model = ToyModel
    Loss = ToyLoss
    layouts: ClassVar[tuple[Layout, ...]] = ("aligned", "single")
    networks = ("N",)
    generators = ("N",)
    directions: ClassVar[Mapping[Direction, str]] = {"AtoB": "N"}

    def build_networks(self) -> dict[str, nn.Module]:
        return {"N": small_network(self.model.width)}

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        return (Phase("N", self._step, trains=("N",), losses=("L1",)),)

    def _step(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        target = inputs.images.get("B", inputs.A)
        distance = F.l1_loss(widened(forward["N"](inputs.A)), target)
        return PhaseResult((self.loss.lambda_toy * distance).reshape(1))

    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"input": images["A"], "output": translate("N", images["A"])}


class Pix2PixOrder(Recipe):
    """The order of pix2pix: one forward of G, then D (``rounds`` times), then G with the updated D.

    D sees A and B side by side. ``carried`` is a running mean of D's loss, as an example of a state.
    """

    name = "pix2pix_order"
    Model = ModelConfig
    layouts: ClassVar[tuple[Layout, ...]] = ("aligned",)
    networks = ("G", "D")
    generators = ("G",)
    directions: ClassVar[Mapping[Direction, str]] = {"AtoB": "G"}
    rounds = 1

    def __init__(self, loss: Any = None, model: Any = None) -> None:
        super().__init__(loss, model)
        self.seen = 0

    def build_networks(self) -> dict[str, nn.Module]:
        from fastcyclegan.nn.networks import build_discriminator, build_generator
        from fastcyclegan.reference import init_weights

        return {
            "G": init_weights(build_generator(self.model, 3, 3)),
            "D": init_weights(build_discriminator(self.model, 6)),
        }

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        train_D = Phase("D", self._discriminator, trains=("D",), losses=("D_fake", "D_real"), wants=("fake",))
        return (
            Phase("translate", self._translate),
            *(train_D for _ in range(self.rounds)),
            Phase(
                "G",
                self._generator,
                trains=("G",),
                freezes=("D",),
                losses=("G_GAN", "G_L1"),
                wants=("fake",),
            ),
        )

    def _translate(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        return PhaseResult(outputs={"fake": forward["G"](inputs.A)})

    def _discriminator(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        fake = forward["D"](torch.cat([inputs.A, inputs.earlier["fake"].detach()], 1))
        real = forward["D"](torch.cat([inputs.A, inputs.B], 1))
        losses = [0.5 * widened(fake).square().mean(), 0.5 * (widened(real) - 1).square().mean()]
        return PhaseResult(torch.stack(losses))

    def _generator(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        fake = inputs.earlier["fake"]
        judged = forward["D"](torch.cat([inputs.A, fake], 1))
        losses = [(widened(judged) - 1).square().mean(), 100 * F.l1_loss(widened(fake), inputs.B)]
        return PhaseResult(torch.stack(losses))

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        self.seen += len(batch.samples)
        return {}

    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"real_A": images["A"], "fake_B": translate("G", images["A"]), "real_B": images["B"]}

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.seen = state["seen"]


def pix2pix_step(
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    A: Tensor,
    B: Tensor,
    rounds: int,
) -> dict[str, Tensor]:
    """Run one iteration of ``Pix2PixOrder`` in plain PyTorch, in the official order. Return its losses."""
    G, D = nets["G"], nets["D"]
    fake = G(A)
    for _ in range(rounds):
        optimizers["D"].zero_grad()
        fake_loss = 0.5 * D(torch.cat([A, fake.detach()], 1)).square().mean()
        real_loss = 0.5 * (D(torch.cat([A, B], 1)) - 1).square().mean()
        (fake_loss + real_loss).backward()
        optimizers["D"].step()
    optimizers["G"].zero_grad()
    gan = (D(torch.cat([A, fake], 1)) - 1).square().mean()
    distance = 100 * F.l1_loss(fake, B)
    (gan + distance).backward()
    optimizers["G"].step()
    return {
        "D_fake": fake_loss.detach(),
        "D_real": real_loss.detach(),
        "G_GAN": gan.detach(),
        "G_L1": distance.detach(),
    }


class NoiseToy(Recipe):
    """A GAN without a discriminator: make images from noise that have the colours of the training images."""

    name = "noise_toy"
    layouts: ClassVar[tuple[Layout, ...]] = ("single",)
    networks = ("N",)
    generators = ("N",)
    SIZE = 4

    @property
    def numbers_per_sample(self) -> int:
        return self.SIZE

    def build_networks(self) -> dict[str, nn.Module]:
        return {"N": nn.Sequential(nn.ConvTranspose2d(self.SIZE, 3, 16), nn.Tanh())}

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        return (Phase("N", self._step, trains=("N",), losses=("colours",)),)

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        noise = torch.tensor([sample.numbers for sample in batch.samples], dtype=torch.float32)
        return {"noise": noise.T.contiguous()}

    def _step(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        made = forward["N"](inputs.numbers["noise"].T[:, :, None, None])
        return PhaseResult((widened(made).mean((2, 3)) - inputs.A.mean((2, 3))).square().mean().view(1))

    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise = torch.linspace(0, 1, self.SIZE, device=images["A"].device).view(1, -1, 1, 1)
        return {"real": images["A"], "made": translate("N", noise)}

    def generate(self, run: Translate, count: int, noise: torch.Generator) -> Tensor:
        return run("N", torch.rand((count, self.SIZE, 1, 1), generator=noise))
