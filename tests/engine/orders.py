"""Train on the same samples with the official iteration, with the reference and with an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bench.official_order import OfficialCycleGAN
from fastcyclegan import reference as ref
from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import AUGMENT_NUMBERS, AUGMENTED
from fastcyclegan.testing import is_cancelled_bias, relative_error

SMALL = ModelConfig(netG="resnet_1blocks", ngf=4, ndf=4, netD="n_layers", n_layers_D=2)
LR = 2e-4


class PlannedRandom:
    """Replaces Python's ``random`` in the official pool with the draws of the sampling plan."""

    def __init__(self) -> None:
        self.draws: list[tuple[float, float]] = []
        self.place = 0.0

    def uniform(self, a: float, b: float) -> float:
        swap, self.place = self.draws.pop(0)
        return 1 - swap  # the official code swaps above one half, the plan below it

    def randint(self, a: int, b: int) -> int:
        return int(self.place * (b + 1))


def augment_numbers(batch: Any) -> dict[str, torch.Tensor]:
    """Return the random numbers [7, N] of each augmented input, or {} if the plan drew none."""
    if not batch.samples[0].numbers:
        return {}
    return {
        name: torch.tensor([s.numbers[AUGMENT_NUMBERS * k :][:AUGMENT_NUMBERS] for s in batch.samples]).T
        for k, name in enumerate(AUGMENTED)
    }


def run_official(
    nets: dict[str, torch.nn.Module], batches: Sequence[Any], loss: LossConfig
) -> list[dict[str, float]]:
    planned = {"A": PlannedRandom(), "B": PlannedRandom()}
    model = OfficialCycleGAN(
        *(nets[name] for name in ("G_AB", "G_BA", "D_B", "D_A")),
        gan_mode=loss.gan_mode, lambda_A=loss.lambda_A, lambda_B=loss.lambda_B,
        lambda_identity=loss.lambda_identity,
        pool_size=loss.pool_size, lr=LR, random_A=planned["A"], random_B=planned["B"],
        diffaugment=loss.augmentations,
    )  # fmt: skip
    history, seen = [], 0
    for batch in batches:
        # The official pool draws random numbers only once it is full.
        drawing = [n for n in range(len(batch.samples)) if seen + n >= loss.pool_size]
        planned["A"].draws = [batch.samples[n].draw_A for n in drawing]
        planned["B"].draws = [batch.samples[n].draw_B for n in drawing]
        model.set_input(batch.A.contiguous(), batch.B.contiguous(), augment_numbers(batch))
        model.optimize_parameters()
        seen += len(batch.samples)
        history.append({name: torch.as_tensor(value).item() for name, value in model.losses().items()})
    return history


def run_reference(
    nets: dict[str, torch.nn.Module], batches: Sequence[Any], loss: LossConfig
) -> list[dict[str, float]]:
    optimizers = {
        "G": torch.optim.Adam([*nets["G_AB"].parameters(), *nets["G_BA"].parameters()], LR, (0.5, 0.999)),
        "D": torch.optim.Adam([*nets["D_A"].parameters(), *nets["D_B"].parameters()], LR, (0.5, 0.999)),
    }
    pools = {side: ref.ReplayPool(loss.pool_size) for side in "AB"}
    weights = ref.LossWeights(
        loss.gan_mode, loss.lambda_A, loss.lambda_B, loss.lambda_identity, loss.lambda_gp, loss.augmentations
    )
    history = []
    for batch in batches:
        draws = {"A": [s.draw_A for s in batch.samples], "B": [s.draw_B for s in batch.samples]}
        mix = {
            "A": torch.tensor([s.mix_A for s in batch.samples]),
            "B": torch.tensor([s.mix_B for s in batch.samples]),
        }
        losses = ref.train_step(
            nets, optimizers, pools, batch.A, batch.B, draws, weights, mix, augment_numbers(batch)
        )
        history.append({name: value.item() for name, value in losses.items()})
    return history


def run_engine(engine: Engine, batches: Sequence[Any]) -> list[dict[str, float]]:
    return [
        dict(zip(engine.recipe.loss_names, engine.step(batch, LR).tolist(), strict=True)) for batch in batches
    ]


def assert_same_weights(ours: Any, expected: Any, limit: float) -> None:
    for name, net in expected.items():
        for key, value in net.state_dict().items():
            if not is_cancelled_bias(net, key):
                assert relative_error(ours[name].state_dict()[key], value) < limit, (name, key)
