"""CycleGAN: four networks, two replay pools, and the two phases of an iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import LossConfig, ModelConfig, TrainConfig
from fastcyclegan.data.source import Batch
from fastcyclegan.image_pool import ImagePool
from fastcyclegan.networks import build_discriminator, build_generator
from fastcyclegan.reference import LossWeights, discriminator_loss, generator_losses, init_weights

Networks = Mapping[str, nn.Module]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """One update: the networks it trains, the ones it freezes meanwhile, and its losses, whose sum is minimised."""

    name: str
    trains: tuple[str, ...]
    freezes: tuple[str, ...]
    losses: Callable[[Networks, Batch], Losses]


def build_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Return the four networks, initialised, created in the official order (G_AB, G_BA, D_B, D_A), which fixes what a seed gives."""

    def initialised(net: nn.Module) -> nn.Module:
        return init_weights(net, config.init_type, config.init_gain)

    return {
        "G_AB": initialised(build_generator(config, config.input_nc, config.output_nc)),
        "G_BA": initialised(build_generator(config, config.output_nc, config.input_nc)),
        "D_B": initialised(build_discriminator(config, config.output_nc)),
        "D_A": initialised(build_discriminator(config, config.input_nc)),
    }


@dataclass
class CycleGAN:
    """The recipe: ``phases`` in order, and the pools that carry fakes from one iteration to later ones."""

    loss: LossConfig
    pools: dict[str, ImagePool] = field(init=False)
    phases: tuple[Phase, ...] = field(init=False)

    def __post_init__(self) -> None:
        c = self.loss
        self.weights = LossWeights(c.gan_mode, c.lambda_A, c.lambda_B, c.lambda_identity, c.lambda_gp)
        self.pools = {"A": ImagePool(c.pool_size), "B": ImagePool(c.pool_size)}
        self.fakes: dict[str, Tensor] = {}
        generators, discriminators = ("G_AB", "G_BA"), ("D_A", "D_B")
        self.phases = (
            Phase("G", generators, discriminators, self._generator_losses),
            Phase("D", discriminators, (), self._discriminator_losses),
        )

    @classmethod
    def from_config(cls, config: TrainConfig) -> CycleGAN:
        return cls(config.loss)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses, in the order in which the phases return them."""
        identity = ("idt_B", "idt_A") if self.loss.lambda_identity > 0 else ()
        return ("G_AB", "G_BA", "cycle_A", "cycle_B", *identity, "D_B", "D_A")

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        """Networks whose gradient is differentiated again, which torch.compile does not support."""
        return ("D_A", "D_B") if self.loss.gan_mode == "wgangp" else ()

    def _generator_losses(self, nets: Networks, batch: Batch) -> Losses:
        losses, self.fakes["A"], self.fakes["B"] = generator_losses(nets, batch.A, batch.B, self.weights)
        return losses

    def _discriminator_losses(self, nets: Networks, batch: Batch) -> Losses:
        """The pool of fake B is asked first. Both pools see the fakes that the generators made before their update."""
        pooled_B = self.pools["B"].query(self.fakes.pop("B"), [sample.draw_B for sample in batch.samples])
        pooled_A = self.pools["A"].query(self.fakes.pop("A"), [sample.draw_A for sample in batch.samples])
        mix_A = mix_B = None
        if self.loss.gan_mode == "wgangp":
            mix_B = torch.tensor([sample.mix_B for sample in batch.samples], device=batch.B.device)
            mix_A = torch.tensor([sample.mix_A for sample in batch.samples], device=batch.A.device)
        return {
            "D_B": discriminator_loss(nets["D_B"], batch.B, pooled_B, self.weights, mix_B),
            "D_A": discriminator_loss(nets["D_A"], batch.A, pooled_A, self.weights, mix_A),
        }

    def state_dict(self) -> dict[str, Any]:
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name], device)
