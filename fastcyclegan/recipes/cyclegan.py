"""CycleGAN: four networks, two replay pools, and the two phases of an iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import LossConfig, ModelConfig, TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.nn.networks import build_discriminator, build_generator
from fastcyclegan.recipes.image_pool import ImagePool
from fastcyclegan.recipes.losses import gan_losses, l1_losses
from fastcyclegan.recipes.recipe import Forward, Inputs, Phase
from fastcyclegan.reference import LossWeights, gradient_penalty, init_weights

GENERATORS, DISCRIMINATORS = ("G_AB", "G_BA"), ("D_A", "D_B")


def build_networks(config: ModelConfig) -> dict[str, nn.Module]:
    """Return the four networks, initialised, created in the official order (G_AB, G_BA, D_B, D_A), which
    fixes what a seed gives.
    """

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
    """The recipe: ``phases`` in order, and the pools that carry fakes from one iteration to later ones.

    Every network is called once a stage: the generators with pictures of both domains (a fake and, with
    identity loss, a picture that should stay), then with the fakes of the other; the discriminators with the
    fakes, and in their own phase with real and pooled ones.
    """

    loss: LossConfig
    pools: dict[str, ImagePool] = field(init=False)
    phases: tuple[Phase, ...] = field(init=False)

    def __post_init__(self) -> None:
        c = self.loss
        self.weights = LossWeights(c.gan_mode, c.lambda_A, c.lambda_B, c.lambda_identity, c.lambda_gp)
        self.pools = {"A": ImagePool(c.pool_size), "B": ImagePool(c.pool_size)}
        self.fakes: dict[str, list[Tensor]] = {"A": [], "B": []}
        self._constants: dict[Any, Tensor] = {}
        self.fuse(lambda function: function)
        self.phases = (
            Phase("G", GENERATORS, DISCRIMINATORS, self._generator_losses),
            Phase("D", DISCRIMINATORS, (), self._discriminator_losses, self._pooled),
        )

    @classmethod
    def from_config(cls, config: TrainConfig) -> CycleGAN:
        return cls(config.loss)

    def anew(self) -> CycleGAN:
        """Return a recipe with the same settings, before its first iteration."""
        return type(self)(self.loss)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The names of the losses, in the order in which the phases return them."""
        identity = ("idt_B", "idt_A") if self.loss.lambda_identity > 0 else ()
        return ("G_AB", "G_BA", "cycle_A", "cycle_B", *identity, "D_B", "D_A")

    @property
    def averaged(self) -> tuple[str, ...]:
        """Networks of which running averages are worth having: those that users keep."""
        return GENERATORS

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        """Networks whose gradient is differentiated again, which torch.compile does not support."""
        return ("D_A", "D_B") if self.loss.gan_mode == "wgangp" else ()

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Settle on the host all that chance decides for ``batch``: what the pools show and keep, and where
        wgangp mixes.

        The pool of fake B is asked first. Every entry has one column a sample. Called once for each
        iteration, in their order.
        """
        draws = {
            "B": [sample.draw_B for sample in batch.samples],
            "A": [sample.draw_A for sample in batch.samples],
        }
        numbers = {
            f"pool_{side}": torch.tensor(self.pools[side].plan(drawn), dtype=torch.int64)
            for side, drawn in draws.items()
        }
        if self.loss.gan_mode == "wgangp":
            numbers["mix_B"] = torch.tensor([sample.mix_B for sample in batch.samples])
            numbers["mix_A"] = torch.tensor([sample.mix_A for sample in batch.samples])
        return numbers

    def is_steady(self, batch: Batch) -> bool:
        """Whether an iteration with ``batch`` needs no decision of the host: all pictures that the pools hold
        are of its size.
        """
        # The fake of B is made from a picture of A, and has its size.
        sizes = {
            "A": (*batch.A.shape[1:2], *batch.B.shape[2:]),
            "B": (*batch.B.shape[1:2], *batch.A.shape[2:]),
        }
        return all(pool.holds(sizes[side]) for side, pool in self.pools.items())

    def fuse(self, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Have ``compiler`` make one function each of the arithmetic of the losses."""
        self._gan_losses, self._l1_losses = compiler(gan_losses), compiler(l1_losses)

    def _constant(self, values: Sequence[float], like: Tensor) -> Tensor:
        """Return ``values`` on the device of ``like``, put there once: a graph cannot wait for the host."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (tuple(values), like.device, dtype)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=like.device)
        return self._constants[key]

    def _generator_losses(self, run: Forward, inputs: Inputs) -> Tensor:
        a, b, w = inputs.A, inputs.B, self.weights
        fake_A, fake_B, rec_A, rec_B, same = self._translations(run, a, b)
        judged = run({"D_A": [fake_A], "D_B": [fake_B]})
        self.fakes["A"].append(fake_A.detach())
        self.fakes["B"].append(fake_B.detach())
        logits = [judged["D_B"][0], judged["D_A"][0]]
        weights = [w.lambda_A, w.lambda_B] + [
            w.lambda_identity * w.lambda_B,
            w.lambda_identity * w.lambda_A,
        ] * (len(same) > 0)
        targets = [a, b, b, a][: len(weights)]
        adversarial = self._gan_losses(logits, self._constant([1.0, 1.0], logits[0]), w.gan_mode)
        distances = self._l1_losses([rec_A, rec_B, *same], targets, self._constant(weights, rec_A))
        return torch.cat([adversarial, distances])

    def _translations(
        self, run: Forward, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Return fake_A, fake_B, rec_A, rec_B, and with identity losses (idt_B, idt_A)."""
        identity = self.weights.lambda_identity > 0
        if run.in_any_order(GENERATORS):
            first = run({"G_AB": [a, b], "G_BA": [b, a]} if identity else {"G_AB": [a], "G_BA": [b]})
            fake_B, fake_A = first["G_AB"][0], first["G_BA"][0]
            second = run({"G_AB": [fake_A], "G_BA": [fake_B]})
            return (
                fake_A,
                fake_B,
                second["G_BA"][0],
                second["G_AB"][0],
                [first["G_AB"][1], first["G_BA"][1]] if identity else [],
            )
        # The official order: batch norm's running statistics, for one, depend on it.
        G_AB, G_BA = run["G_AB"], run["G_BA"]
        fake_B = G_AB(a)
        rec_A = G_BA(fake_B)
        fake_A = G_BA(b)
        rec_B = G_AB(fake_A)
        return fake_A, fake_B, rec_A, rec_B, [G_AB(b), G_BA(a)] if identity else []

    def _pooled(self, inputs: Inputs) -> Inputs:
        """Show the pools the fakes that the generators made before their update, and add what the pools
        return.
        """
        pooled = {}
        for side in "BA":
            parts, self.fakes[side] = self.fakes[side], []
            fakes = parts[0] if len(parts) == 1 else torch.cat(parts)
            pooled[side] = self.pools[side].take(fakes, inputs.numbers[f"pool_{side}"])
        return replace(inputs, pooled=pooled)

    def _discriminator_losses(self, run: Forward, inputs: Inputs) -> Tensor:
        w, real = self.weights, {"A": inputs.A, "B": inputs.B}
        judged = run({f"D_{side}": [real[side], inputs.pooled[side]] for side in "AB"})
        logits = [*judged["D_B"], *judged["D_A"]]
        losses: Tensor = (
            self._gan_losses(logits, self._constant([1.0, 0.0, 1.0, 0.0], logits[0]), w.gan_mode)
            .view(2, 2)
            .sum(1)
        )
        if w.gan_mode == "wgangp":
            of_side = [
                (run[f"D_{side}"], real[side], inputs.pooled[side], inputs.numbers[f"mix_{side}"])
                for side in "BA"
            ]
            losses = losses + torch.stack([gradient_penalty(*given, w.lambda_gp) for given in of_side])
        return 0.5 * losses

    def carried(self) -> list[Tensor]:
        """Return what the generators' phase leaves for the discriminators'."""
        return [fake for fakes in self.fakes.values() for fake in fakes]

    def forget_carried(self) -> None:
        """Forget it: the iteration was not to be."""
        self.fakes = {"A": [], "B": []}

    def state_dict(self) -> dict[str, Any]:
        return {name: pool.state_dict() for name, pool in self.pools.items()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        for name, pool in self.pools.items():
            pool.load_state_dict(state[name], device)
