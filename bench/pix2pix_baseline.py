"""The official training step of pix2pix as the benches compare it: a row of ``baselines.py``.

``official_order.py`` contains the iteration itself. This module connects it to the benches. Both sides train
without dropout, because they draw its masks in other memory layouts and precisions, so that the masks would
differ. It is three small layers of the U-Net, of at most 512 x 16 x 16 values an image, whose time does not
show in that of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.official_order import OfficialPix2Pix
from fastcyclegan import reference
from fastcyclegan.config import TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.recipes.recipe import Forward, Inputs, PhaseResult, Settings

# Settings with which both sides compute the same.
SETTINGS: Settings = {"model": {"no_dropout": True}}
# Only the first images are kept: more than are ever compared.
KEPT = 32


def pix2pix_config(**model: Any) -> TrainConfig:
    """Return the default settings with the given ones of the networks, without dropout."""
    config = with_changes(default_config(Pix2PixRecipe.name), SETTINGS)
    return with_changes(config, {"model": model})


def plain_networks(config: TrainConfig) -> dict[str, nn.Module]:
    """Return a generator and a discriminator of pairs of images, as plain reference modules."""
    model: Any = config.model
    norm: dict[str, Any] = {"norm": model.norm, "affine": model.affine}
    pair = model.input_nc + model.output_nc
    if model.netD == "pixel":
        judge: nn.Module = reference.PixelDiscriminator(pair, model.ndf, **norm)
    else:
        layers = model.n_layers_D if model.netD == "n_layers" else 3
        judge = reference.Discriminator(pair, model.ndf, layers, **norm)
    return {"G": _plain_generator(model, norm), "D": judge}


def _plain_generator(model: Any, norm: dict[str, Any]) -> nn.Module:
    channels = (model.input_nc, model.output_nc)
    if model.levels is not None:
        return reference.UnetGenerator(
            *channels, model.levels, model.ngf, use_dropout=model.has_dropout, **norm
        )
    return reference.Generator(
        *channels,
        model.ngf,
        int(model.netG.removeprefix("resnet_").removesuffix("blocks")),
        use_dropout=model.has_dropout,
        upsample=model.upsample,
        downsample=model.downsample,
        **norm,
    )


class OfficialStep:
    """The official iteration of the networks ``nets`` with learning rate ``lr``; see ``baselines.py``."""

    def __init__(self, nets: Mapping[str, nn.Module], config: TrainConfig, lr: float) -> None:
        loss: Any = config.loss
        self.has_penalty = loss.gan_mode == "wgangp"
        self.model = OfficialPix2Pix(
            nets["G"],
            nets["D"],
            gan_mode=loss.gan_mode,
            lambda_L1=loss.lambda_L1,
            lr=lr,
            lambda_gp=loss.lambda_gp if self.has_penalty else 0.0,
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.model.optimizer_D, self.model.optimizer_G]
        self.kept = Kept()

    def run(self, batch: Batch) -> dict[str, Tensor]:
        mix = None
        if self.has_penalty:
            mix = torch.tensor([sample.mix_B for sample in batch.samples], device=batch.A.device)
        self.model.set_input(batch.A, batch.B, mix)
        self.model.optimize_parameters()
        self.kept.add(self.model.fake_B)
        # The penalty is the number 0 if it is off.
        return {name: value for name, value in self.model.losses().items() if isinstance(value, Tensor)}

    def state(self) -> Any:
        return []

    def fakes(self, count: int) -> Tensor:
        return self.kept.first(count)

    def mark(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.model.backward_D = wrap(self.model.backward_D)  # type: ignore[method-assign]


class Kept:
    """Copies of the first KEPT images that a training step generates.

    A CUDA graph can repeat ``add``: the number of images so far is on their device. Images after the first
    KEPT ones overwrite a slot that is not returned.
    """

    def __init__(self) -> None:
        self._slots: Tensor | None = None

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Copy ``images`` [N, C, H, W]. All images must have the same size, and N is at most KEPT."""
        if self._slots is None:
            self._slots = images.new_zeros(KEPT + 1, *images.shape[1:])
            self._added = torch.zeros((), dtype=torch.int64, device=images.device)
            self._numbers = torch.arange(KEPT, device=images.device)
        numbers = (self._added + self._numbers[: len(images)]).clamp(max=KEPT)
        self._slots.index_copy_(0, numbers, images.detach())
        self._added += len(images)

    def first(self, count: int) -> Tensor:
        """Return the first ``count`` images, [1, count, C, H, W]."""
        assert self._slots is not None
        assert count <= KEPT
        return self._slots[None, :count]


def translated_images(engine: Engine) -> Callable[[int], Tensor]:
    """Return how to get the generated images of ``engine``, which its first phase returns."""
    kept = Kept()
    translate, *others = engine.phases

    def run(forward: Forward, inputs: Inputs) -> PhaseResult:
        result = translate.run(forward, inputs)
        kept.add(result.outputs["fake_B"])
        return result

    engine.phases = (replace(translate, run=run), *others)
    return kept.first
