"""The CycleGAN recipe: four networks, two replay pools, and the two phases of an iteration."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.scan import Images
from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import (
    MisfitError,
    Rule,
    described,
    exactly,
    joined,
    list_of,
    nothing_or,
    record,
    whole,
)
from fastcyclegan.files.tensor_rules import plain_tensor, require_range
from fastcyclegan.nn.networks import build_discriminator, build_generator
from fastcyclegan.nn.torch_defaults import float32_by_default
from fastcyclegan.recipes.diffaugment import DiffAugment
from fastcyclegan.recipes.image_pool import ImagePool
from fastcyclegan.recipes.losses import BatchedLosses
from fastcyclegan.recipes.recipe import (
    Compile,
    Forward,
    Inputs,
    Phase,
    PhaseResult,
    Recipe,
    Settings,
    Shape,
    Translate,
    uncompiled,
)
from fastcyclegan.reference import gradient_penalty, init_weights
from fastcyclegan.settings.checks import check_maximum, check_minimum
from fastcyclegan.settings.data import FIXED_SIZE, DataConfig, Direction, Layout
from fastcyclegan.settings.networks import ModelConfig
from fastcyclegan.settings.recipe import LossSettings

GENERATORS, DISCRIMINATORS = ("G_AB", "G_BA"), ("D_A", "D_B")
AUGMENTATIONS = ("color", "translation", "cutout")
# What an iteration shows the discriminators, and how many random numbers augment an image of it.
AUGMENTED = ("fake_B", "fake_A", "real_B", "pooled_B", "real_A", "pooled_A")
AUGMENT_NUMBERS = 7
# More than any use needs, but little enough to be refused before memory runs out.
_MOST_IMAGES = 10**6


@dataclass(frozen=True)
class LossConfig(LossSettings):
    """Losses and replay pools."""

    #: Adversarial loss: least squares (lsgan), cross entropy (vanilla), or Wasserstein with gradient
    #: penalty (wgangp).
    gan_mode: Literal["lsgan", "vanilla", "wgangp"] = "lsgan"
    #: Weight of the cycle loss from A to B and back to A.
    lambda_A: float = 10.0
    #: Weight of the cycle loss from B to A and back to B.
    lambda_B: float = 10.0
    #: Weight of the identity loss, relative to lambda_A and lambda_B; 0 skips its forward passes.
    lambda_identity: float = 0.5
    #: Weight of the gradient penalty with --gan_mode wgangp.
    lambda_gp: float = 10.0
    #: Number of generated images kept in each replay pool. With 0, the discriminators only see the newest
    #: images.
    pool_size: int = 50
    #: Augment all images that the discriminators are shown, real and generated, differentiably (DiffAugment),
    #: which helps with few images: a comma-separated list of color, translation and cutout, in any order.
    diffaugment: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_augmentations()
        check_minimum(self, 0, "lambda_A", "lambda_B", "lambda_identity", "lambda_gp", "pool_size")
        check_maximum(self, _MOST_IMAGES, "pool_size")
        if self.lambda_gp != LossConfig.lambda_gp and self.gan_mode != "wgangp":
            raise UserError(f"--lambda_gp only applies to --gan_mode wgangp, not to {self.gan_mode}")

    @classmethod
    def excluded_by(cls, name: str, value: Any) -> tuple[str, ...]:
        return ("lambda_gp",) if name == "gan_mode" and value != "wgangp" else ()

    def _check_augmentations(self) -> None:
        names = self._named_augmentations()
        for name in names:
            if name not in AUGMENTATIONS:
                raise UserError(
                    f"diffaugment must be a comma-separated list of {', '.join(AUGMENTATIONS)}, got"
                    f" {described(name)}"
                )
            if names.count(name) > 1:
                raise UserError(f"diffaugment lists {name} more than once")

    def _named_augmentations(self) -> list[str]:
        if self.diffaugment is None:
            return []
        return [name.strip() for name in self.diffaugment.split(",")]

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in ``diffaugment``, in the order in which they are applied."""
        named = self._named_augmentations()
        return tuple(name for name in AUGMENTATIONS if name in named)


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
    if any(len(sample.numbers) != count for sample in batch.samples):
        raise ValueError(f"CycleGANRecipe: augmentation needs samples of a plan with numbers={count}")
    drawn = torch.tensor([sample.numbers for sample in batch.samples], dtype=torch.float32)
    numbers = drawn.view(-1, len(AUGMENTED), AUGMENT_NUMBERS).permute(2, 1, 0)
    return {"augment_G": numbers[:, :2], "augment_D": numbers[:, 2:]}


class CycleGANRecipe(Recipe):
    """CycleGAN as a ``Recipe``. ``pools`` store fake images of each domain for later iterations.

    Each network is called once per stage. The generators are called with images of both domains (one to
    translate and, with identity losses, one that should not change), and then with each other's fake images.
    The discriminators are called with the fake images, and in their own phase with real and pooled images.
    """

    name = "cycle_gan"
    title = "CycleGAN"
    summary = "Train CycleGAN on two folders of images."
    Model = ModelConfig
    Loss = LossConfig
    fixed = ("pool_size",)
    layouts: ClassVar[tuple[Layout, ...]] = ("unaligned", "aligned")
    shown_settings = ("netG", "ngf", "netD", "ndf")
    # Small images and networks, which take a few minutes on two cores.
    builtin: ClassVar[Settings | None] = {
        "data": {"load_size": 64, "crop_size": 64, "num_threads": 0},
        "model": {"netG": "resnet_2blocks", "ngf": 16, "ndf": 32, "netD": "n_layers", "n_layers_D": 2},
        "optim": {"n_epochs": 3, "n_epochs_decay": 3, "lr": 4e-4},
        "run": {"save_epoch_freq": 0},
    }

    networks = (*GENERATORS, *DISCRIMINATORS)
    generators = GENERATORS
    directions: ClassVar[Mapping[Direction, str]] = {"AtoB": "G_AB", "BtoA": "G_BA"}
    # The official G_A translates A to B, and the official D_A is the discriminator for B.
    official_names: ClassVar[Mapping[str, str]] = {
        "G_AB": "G_A",
        "G_BA": "G_B",
        "D_B": "D_A",
        "D_A": "D_B",
    }
    # The discriminators' phase uses fake images made before the generators' update.
    phases_may_overlap = True

    def __init__(self, loss: LossConfig | None = None, model: ModelConfig | None = None) -> None:
        super().__init__(loss, model)
        pool_size = self.loss.pool_size
        self.pools = {"A": ImagePool(pool_size), "B": ImagePool(pool_size)}
        self.has_identity = self.loss.lambda_identity > 0
        self.has_penalty = self.loss.gan_mode == "wgangp"
        identity = ("idt_B", "idt_A") if self.has_identity else ()
        self.distances = ("cycle_A", "cycle_B", *identity)

    @property
    def twice_differentiated(self) -> tuple[str, ...]:
        return DISCRIMINATORS if self.has_penalty else ()

    @property
    def loss_panels(self) -> Mapping[str, tuple[str, ...]]:
        return {
            "adversarial": ("G_AB", "G_BA", "D_B", "D_A"),
            "cycle and identity": self.distances,
        }

    # --- Settings and images --------------------------------------------------------------------------------

    @classmethod
    def check_settings(cls, data: DataConfig, model: Any, loss: Any) -> None:
        model.check_crop(data)
        if loss.lambda_identity > 0 and model.input_nc != model.output_nc:
            raise UserError(
                f"the identity loss needs equal channel counts, got input_nc {model.input_nc} and output_nc"
                f" {model.output_nc}: use --lambda_identity 0"
            )
        if loss.gan_mode == "wgangp" and data.preprocess not in FIXED_SIZE:
            raise UserError(
                "wgangp mixes real and fake images, so they must be of equal size, which --preprocess"
                f" {data.preprocess} does not guarantee"
            )

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
        return self.has_penalty

    @property
    def numbers_per_sample(self) -> int:
        return len(AUGMENTED) * AUGMENT_NUMBERS if self.loss.augmentations else 0

    # --- Texts ----------------------------------------------------------------------------------------------

    @property
    def architecture(self) -> str:
        model = self.model
        return f"{model.netG} (ngf {model.ngf}, {model.norm} norm) and {model.netD} (ndf {model.ndf})"

    def describe_networks(self, weights: Mapping[str, int]) -> str:
        model, G, D = self.model, weights["G_AB"], weights["D_A"]
        return f"{model.netG} ngf {model.ngf} ({G:,} weights each), {model.netD} ndf {model.ndf} ({D:,} each)"

    def rows(self) -> dict[str, str]:
        names = self.loss.augmentations
        if not names:
            return {}
        return {"augmentation": f"{', '.join(names)} before both discriminators (--diffaugment)"}

    # --- Networks and phases --------------------------------------------------------------------------------

    def build_networks(self) -> dict[str, nn.Module]:
        return build_networks(self.model)

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        losses = BatchedLosses(self.loss.gan_mode, compile_loss)
        augment = DiffAugment(self.loss.augmentations, compile_loss)
        return (
            Phase(
                "G",
                functools.partial(self._generators, losses, augment),
                trains=GENERATORS,
                freezes=DISCRIMINATORS,
                # In the order of the results: B before A, except for the cycle losses.
                losses=("G_AB", "G_BA", *self.distances),
            ),
            Phase(
                "D",
                functools.partial(self._discriminators, losses, augment),
                trains=DISCRIMINATORS,
                losses=("D_B", "D_A"),
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

    def samples(self, translate: Translate, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return both images, their translations, and the translations translated back."""
        A, B = images["A"], images["B"]
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

    def state_rules(self, sizes: Mapping[str, tuple[int, int]] | None) -> Mapping[Any, Rule]:
        channels, rules = {"A": self.model.input_nc, "B": self.model.output_nc}, {}
        for side, opposite in (("A", "B"), ("B", "A")):
            # A generated image of one domain has the size of the image of the other that it was made from.
            size = None if sizes is None else sizes[opposite]
            rules[side] = _pool(self.loss.pool_size, channels[side], size)
        return rules

    def state_bytes(self, shapes: Mapping[str, Shape]) -> int:
        return sum(4 * math.prod(shape) for shape in shapes.values()) * int(self.loss.pool_size)

    def builtin_scores(self, translate: Translate, images: Images, device: torch.device) -> list[str]:
        lines, side = [], builtin.side_for(self.model.size_multiple)
        for direction, score in builtin.scores(translate, images, device, side).items():
            lines.append(
                f"{direction[0]} to {direction[1]}: the translations close {score.gap_closed:.2f} of the"
                " difference in stripes between the two domains (1 is all of it); their distance to the true"
                f" counterparts is {score.distance_ratio:.2f} times that of the untranslated images (0 is"
                " perfect)"
            )
        return lines


# --- Rules for saved pools ----------------------------------------------------------------------------------


def _pool(capacity: int, channels: int, size: tuple[int, int] | None) -> Rule:
    def slots(value: Any, place: str) -> None:
        if isinstance(value, list):
            list_of(lambda slot, at: _images(slot, at, (channels,), size), capacity)(value, place)
        else:
            _images(value, place, (capacity, channels), size)

    rule = record({"capacity": exactly(capacity), "filled": whole(0, capacity), "slots": nothing_or(slots)})

    def check(value: Any, place: str) -> None:
        rule(value, place)
        if (value["slots"] is None) != (value["filled"] == 0):
            problem = f"does not match slots, which is {described(value['slots'])}"
            raise MisfitError(joined(place, "filled"), problem)

    return check


def _images(value: Any, place: str, leading: tuple[int, ...], size: tuple[int, int] | None) -> None:
    """Check images of shape [*leading, H, W], where H and W are ``size`` if that is given."""
    images = plain_tensor(value, place)
    sides = tuple(images.shape[-2:]) if size is None else size
    if images.shape != (*leading, *sides) or not all(sides):
        wanted = [*leading, *(("H", "W") if size is None else size)]
        shape = f"[{', '.join(map(str, wanted))}]"
        raise MisfitError(place, f"has the shape {list(images.shape[:8])} instead of {shape}")
    if images.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise MisfitError(place, f"has the dtype {images.dtype}, which images in a pool never have")
    require_range(images, place)  # only finite: a caller can replace the tanh of a generator
