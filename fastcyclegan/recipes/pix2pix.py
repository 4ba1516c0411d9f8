"""The pix2pix recipe: a generator trained on pairs, and a discriminator that sees both images of a pair.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2017. The order of an
iteration and the defaults are those of the official PyTorch code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.scan import Images
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import build_discriminator, build_generator
from fastcyclegan.nn.torch_defaults import float32_by_default
from fastcyclegan.recipes.losses import BatchedLosses
from fastcyclegan.recipes.recipe import (
    Compile,
    Forward,
    Inputs,
    Phase,
    PhaseResult,
    Recipe,
    Settings,
    Translate,
    uncompiled,
)
from fastcyclegan.reference import gradient_penalty, init_weights
from fastcyclegan.settings.checks import check_minimum
from fastcyclegan.settings.data import DataConfig, Direction, Layout
from fastcyclegan.settings.networks import LEAST_UNET, ModelConfig
from fastcyclegan.settings.recipe import LossSettings


@dataclass(frozen=True)
class Pix2PixModel(ModelConfig):
    """The official networks with the defaults of pix2pix."""

    #: Generator: unet_256, unet_128 (or any unet_N where N is a power of two from 32), which takes images
    #: whose sides are multiples of N; or resnet_9blocks, resnet_6blocks (or any resnet_Nblocks).
    netG: str = "unet_256"
    #: Normalisation layers of the generator and the discriminator.
    norm: Literal["instance", "batch", "none"] = "batch"
    #: Use dropout with probability 0.5 in the generator, which is the default.
    use_dropout: bool = False
    #: Train the generator without dropout.
    no_dropout: bool = False

    dropout_by_default = True


@dataclass(frozen=True)
class Pix2PixLoss(LossSettings):
    """Losses of pix2pix."""

    #: Adversarial loss: cross entropy (vanilla), least squares (lsgan), or Wasserstein with gradient penalty
    #: (wgangp).
    gan_mode: Literal["vanilla", "lsgan", "wgangp"] = "vanilla"
    #: Weight of the L1 distance from the generated image to the image of B.
    lambda_L1: float = 100.0
    #: Weight of the gradient penalty with --gan_mode wgangp.
    lambda_gp: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, 0, "lambda_L1", "lambda_gp")
        if self.lambda_gp != Pix2PixLoss.lambda_gp and self.gan_mode != "wgangp":
            raise UserError(f"--lambda_gp only applies to --gan_mode wgangp, not to {self.gan_mode}")

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        return ("lambda_gp",) if name == "gan_mode" and value != "wgangp" else ()


class Pix2PixRecipe(Recipe):
    """pix2pix as a ``Recipe``.

    G translates images of A to B. D judges pairs, an image of A and one of B side by side in the channels.
    G runs once in an iteration: D is trained with the result, and then G with what the updated D says of it.
    """

    name = "pix2pix"
    title = "Pix2Pix"
    summary = "Train pix2pix on pairs of images."
    Model = Pix2PixModel
    Loss = Pix2PixLoss
    layouts: ClassVar[tuple[Layout, ...]] = ("aligned",)
    shown_settings = ("netG", "ngf", "norm", "netD", "ndf")
    # Small images and networks, which take a few minutes on two cores.
    builtin: ClassVar[Settings | None] = {
        "data": {"load_size": 64, "crop_size": 64, "num_threads": 0},
        "model": {"netG": "unet_64", "ngf": 32, "ndf": 32, "netD": "n_layers", "n_layers_D": 2},
        "optim": {"n_epochs": 3, "n_epochs_decay": 3},
        "run": {"save_epoch_freq": 0},
    }

    networks = ("G", "D")
    generators = ("G",)
    directions: ClassVar[Mapping[Direction, str]] = {"AtoB": "G"}
    translates_as_trained = True

    def __init__(self, loss: Pix2PixLoss | None = None, model: Pix2PixModel | None = None) -> None:
        super().__init__(loss, model)
        self.has_penalty = self.loss.gan_mode == "wgangp" and self.loss.lambda_gp > 0

    # --- Settings and images --------------------------------------------------------------------------------

    @classmethod
    def check_settings(cls, data: DataConfig, model: Any, loss: Any) -> None:
        model.check_crop(data)

    @classmethod
    def builtin_for(cls, given: Mapping[str, Any]) -> Settings | None:
        return builtin.with_fitting_images(cls.builtin, given)

    @property
    def requirements(self) -> ImageRequirements:
        return ImageRequirements.of(self.model)

    @property
    def file_channels(self) -> Mapping[str, int]:
        return {"input_nc": self.model.input_nc, "output_nc": self.model.output_nc}

    @property
    def needs_equal_sizes(self) -> bool:
        return True

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        return ("D",) if self.has_penalty else ()

    # --- Texts ----------------------------------------------------------------------------------------------

    @property
    def loss_panels(self) -> Mapping[str, tuple[str, ...]]:
        penalty = ("D_gp",) if self.has_penalty else ()
        return {"adversarial": ("G_GAN", "D_real", "D_fake", *penalty), "L1": ("G_L1",)}

    @property
    def architecture(self) -> str:
        model = self.model
        return f"{model.netG} (ngf {model.ngf}, {model.norm} norm) and {model.netD} (ndf {model.ndf})"

    def describe_networks(self, weights: Mapping[str, int]) -> str:
        model = self.model
        # A U-Net with the fewest levels has none where dropout would be.
        has_dropout = model.has_dropout and model.levels != LEAST_UNET.bit_length() - 1
        dropout = "dropout" if has_dropout else "no dropout"
        norm = "no" if model.norm == "none" else model.norm
        return (
            f"{model.netG} ngf {model.ngf} ({weights['G']:,} weights, {norm} norm, {dropout}),"
            f" {model.netD} ndf {model.ndf} ({weights['D']:,}), which sees A and B"
        )

    # --- Networks and phases --------------------------------------------------------------------------------

    def build_networks(self) -> dict[str, nn.Module]:
        model = self.model
        with float32_by_default():
            nets = {
                "G": build_generator(model, model.input_nc, model.output_nc),
                "D": build_discriminator(model, model.input_nc + model.output_nc),
            }
            return {name: init_weights(net, model.init_type, model.init_gain) for name, net in nets.items()}

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        losses = BatchedLosses(self.loss.gan_mode, compile_loss)
        penalty = ("D_gp",) if self.has_penalty else ()
        return (
            Phase("translate", self._translate),
            Phase(
                "D",
                functools.partial(self._discriminator, losses),
                trains=("D",),
                losses=("D_fake", "D_real", *penalty),
                wants=("fake_B",),
                factor=0.5,
            ),
            Phase(
                "G",
                functools.partial(self._generator, losses),
                trains=("G",),
                freezes=("D",),
                losses=("G_GAN", "G_L1"),
                wants=("fake_B",),
            ),
        )

    def decide(self, batch: Batch) -> dict[str, Tensor]:
        """Decide where wgangp interpolates between real and generated pairs."""
        if not self.has_penalty:
            return {}
        return {"mix": torch.tensor([sample.mix_B for sample in batch.samples], dtype=torch.float32)}

    def _translate(self, forward: Forward, inputs: Inputs) -> PhaseResult:
        return PhaseResult(outputs={"fake_B": forward["G"](inputs.A)})

    def _discriminator(self, losses: BatchedLosses, forward: Forward, inputs: Inputs) -> PhaseResult:
        fake = torch.cat([inputs.A, inputs.earlier["fake_B"].detach()], 1)
        real = torch.cat([inputs.A, inputs.B], 1)
        if self.model.norm == "batch":
            # Each batch has its own statistics. The running ones depend on the order.
            judged = [forward["D"](fake), forward["D"](real)]
        else:
            judged = forward({"D": [fake, real]})["D"]
        total = losses.adversarial(judged, [False, True])
        if self.has_penalty:
            weight = self.loss.lambda_gp
            penalty = gradient_penalty(forward["D"], real, fake, inputs.numbers["mix"], weight)
            total = torch.cat([total, penalty.view(1)])
        return PhaseResult(total)

    def _generator(self, losses: BatchedLosses, forward: Forward, inputs: Inputs) -> PhaseResult:
        fake = inputs.earlier["fake_B"]
        judged = forward["D"](torch.cat([inputs.A, fake], 1))
        adversarial = losses.adversarial([judged], [True])
        distance = losses.distances([fake], [inputs.B], [self.loss.lambda_L1])
        return PhaseResult(torch.cat([adversarial, distance]))

    # --- Samples and scores ---------------------------------------------------------------------------------

    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an image of A, its translation, and the image of B that belongs to it."""
        return {"real_A": images["A"], "fake_B": translate("G", images["A"]), "real_B": images["B"]}

    def builtin_scores(self, translate: Translate, images: Images, device: torch.device) -> list[str]:
        side = builtin.side_for(self.model.size_multiple)
        found = builtin.pair_score(functools.partial(translate, "G"), images, device, side)
        return [
            "L1 ratio: the distance of the translations to their true counterparts is"
            f" {found.of_untranslated:.2f} times that of the untranslated images, and {found.of_mean:.2f}"
            " times that of the mean training image (0 is perfect)"
        ]
