"""Configuration of a training run: frozen dataclasses that check every value.

Each default is written once, here. A setting that the official code also has is named after the official
flag. The comment above a field is its help text on the command line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described, joined
from fastcyclegan.settings.crop_size import MOST_PIXELS, CropSize, checked_crop_size, named_sides, sides_of

Direction = Literal["AtoB", "BtoA"]
Preprocess = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
FIXED_SIZE = ("resize_and_crop", "crop", "scale_width_and_crop")
AUGMENTATIONS = ("color", "translation", "cutout")


def _check_types(config: Any) -> None:
    """Raise UserError if the value of a field does not match its annotated type.

    The command line has checked this already; this check is for callers from Python and for config.json.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hint == CropSize:  # checked_crop_size has checked it
            continue
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise UserError(f"{name} must be one of {', '.join(get_args(hint))}, got {described(value)}")
            continue
        kinds = get_args(hint)
        if not kinds:
            kinds = (hint,)
        wanted = kinds
        if float in kinds:
            wanted = (*kinds, int)
        is_wanted = any(_is_of(value, kind) for kind in wanted)
        if not is_wanted or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{name} must be {names}, got {described(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, got {value}")
        if isinstance(value, int) and abs(value) >= 2**63:  # more than torch and numpy can count
            raise UserError(f"{name} must be below 2**63, got {described(value)}")
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                _check_path(name, item)


def _is_of(value: Any, kind: Any) -> bool:
    """Return whether ``value`` is of ``kind``: a class, or tuple[kind, ...]."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(item, get_args(kind)[0]) for item in value)
    return isinstance(value, kind)


def _check_path(name: str, path: Path) -> None:
    """Raise UserError if no file can have this path, because of characters that no system accepts."""
    try:
        is_possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a character, as in JSON's "\ud800"
        is_possible = False
    if not is_possible:
        raise UserError(f"{name} contains characters that no path can have: {described(str(path))}")


def is_folder_name(name: str) -> bool:
    """Return whether ``name`` can name a folder: printable, without separators, and not hidden."""
    return Path(name).name == name != "" and not name.startswith(".") and name.isprintable()


def _check_minimum(config: Any, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= minimum:
            raise UserError(f"{name} must be at least {minimum}, got {value}")


def _check_maximum(config: Any, maximum: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value > maximum:
            raise UserError(f"{name} must be at most {maximum}, got {value}")


# More than any use needs, but little enough to be refused before memory or time run out.
_MOST_THREADS, _MOST_CHANNELS, _MOST_LAYERS, _MOST_BLOCKS = 4096, 2**31 - 1, 12, 256
_MOST_IMAGES = 10**6


@dataclass(frozen=True)
class DataConfig:
    """Training images: where they are and how they are prepared."""

    #: Dataset folder with trainA/ and trainB/ (and testA/, testB/), or train/A and train/B (and test/A,
    #: test/B). Default: the built-in dataset.
    dataroot: Path | None = None
    #: Folder of images of domain A, given together with --data_B instead of --dataroot; see also --holdout.
    data_A: Path | None = None
    #: Folder of images of domain B, given together with --data_A.
    data_B: Path | None = None
    #: Fraction of the images in --data_A and --data_B to hold out of training and show in the sample grids.
    #: A hash of the seed and the file name determines which images are held out.
    holdout: float = 0.05
    #: Direction in which G_A translates. BtoA swaps the folders: folder B becomes the model's domain A.
    direction: Direction = "AtoB"
    #: How images are resized and cropped. resize_and_crop: resize to load_size x load_size, then crop at
    #: random; scale_width: resize the width to load_size and the height in proportion; none: only round the
    #: sides to a multiple of 4.
    preprocess: Preprocess = "resize_and_crop"
    #: Side (or width) in pixels to which images are resized before cropping, by bicubic interpolation with
    #: antialiasing.
    load_size: int = 286
    #: Side in pixels of the random crop, or its height and width (--crop_size 96 160): multiples of 4 (of 256
    #: for unet_256). If load_size is larger, the random position of the crop helps prevent overfitting.
    crop_size: CropSize = 256
    #: Disable random horizontal flips.
    no_flip: bool = False
    #: Number of images of each domain per iteration. With several, and --preprocess scale_width or none, all
    #: images of a domain must have the same size.
    batch_size: int = 1
    #: Take images in the order of their names and pair B[i] with A[i], instead of shuffling A and drawing B
    #: at random.
    serial_batches: bool = False
    #: Use at most this many images of each domain, the first in order of name.
    max_dataset_size: int | None = None
    #: Number of threads of the dali loader (default: one per core, at most 16), or of worker processes of the
    #: folder loader (default: 4; 0 loads in the main process).
    num_threads: int | None = None
    #: Image loader: dali (NVIDIA DALI, on the GPU if there is one) or folder (Pillow). auto uses dali if it
    #: is installed and works.
    loader: Literal["auto", "dali", "folder"] = "auto"
    #: Memory in which to keep all images, decoded and resized. The run fails if they need more than half of
    #: the free memory.
    cache: Literal["none", "ram", "gpu"] = "none"
    #: Skip and list images that cannot be read or are smaller than the crop; by default such an image ends
    #: the run.
    skip_bad_images: bool = False
    #: Read images of any size, as far as the memory allows. By default, images above 179 megapixels, those
    #: that take more than 1 GiB to decode, and JPEG files of more than 100 scans are bad images. A small
    #: file can claim any amount of memory and time, so only use this for files that you trust.
    allow_decompression_bombs: bool = False
    #: Official flag; only unaligned is supported.
    dataset_mode: Literal["unaligned"] = "unaligned"

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))  # the class is frozen
        _check_types(self)
        _check_minimum(self, 1, "load_size", "batch_size", "max_dataset_size")
        _check_minimum(self, 0, "num_threads")
        _check_maximum(self, MOST_PIXELS, "load_size")
        _check_maximum(self, _MOST_THREADS, "num_threads")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout must be in [0, 1), got {self.holdout}")
        if (self.data_A is None) != (self.data_B is None):
            raise UserError("--data_A and --data_B must be given together")
        if self.holdout != DataConfig.holdout and self.data_A is None:
            raise UserError("--holdout only applies to --data_A and --data_B; --dataroot has test folders")
        if self.dataroot is not None and self.data_A is not None:
            raise UserError("give either --dataroot, or --data_A and --data_B, but not both")
        self._check_load_size()

    def _check_load_size(self) -> None:
        sides = list(named_sides(self.crop_size).items())
        if self.preprocess == "scale_width_and_crop":
            sides = sides[-1:]  # only the width: images are at least as high as the crop
        elif self.preprocess != "resize_and_crop":
            return
        for name, side in sides:
            if side > self.load_size:
                raise UserError(f"{name} is larger than load_size {self.load_size}")

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the random crop, in pixels."""
        return sides_of(self.crop_size)

    @property
    def has_one_size(self) -> bool:
        """Whether all images of a domain have one size: that of the crop, or that which batches need."""
        return self.preprocess in FIXED_SIZE or self.batch_size > 1

    @property
    def is_builtin(self) -> bool:
        """Whether no images were specified, so that the built-in dataset is used."""
        return self.dataroot is None and self.data_A is None


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the networks."""

    #: Official flag; only cycle_gan is supported.
    model: Literal["cycle_gan"] = "cycle_gan"
    #: Number of channels of domain A: 3 for colour, 1 for gray. Other numbers need loaders of your own, which
    #: only CycleGAN.fit accepts.
    input_nc: int = 3
    #: Number of channels of domain B, like --input_nc.
    output_nc: int = 3
    #: Generator: resnet_9blocks, resnet_6blocks (or any resnet_Nblocks), unet_256 or unet_128.
    netG: str = "resnet_9blocks"
    #: Discriminator. basic: the 70x70 PatchGAN; n_layers: a PatchGAN with --n_layers_D layers; pixel: a 1x1
    #: PatchGAN, which classifies single pixels.
    netD: Literal["basic", "n_layers", "pixel"] = "basic"
    #: Number of layers of the discriminators with --netD n_layers.
    n_layers_D: int = 3
    #: Number of channels of the generators' first layer.
    ngf: int = 64
    #: Number of channels of the discriminators' first layer.
    ndf: int = 64
    #: Normalisation layers of the generators and discriminators.
    norm: Literal["instance", "batch", "none"] = "instance"
    #: Give instance norm a learned scale and shift per channel.
    affine: bool = False
    #: How a ResNet generator upsamples: by transposed convolution, or by resizing and then convolving, which
    #: avoids checkerboard patterns. antialias: by a blur and then convolving, as CUT does.
    upsample: Literal["transpose", "resize", "antialias"] = "transpose"
    #: How a ResNet generator downsamples: by a convolution with stride 2, or (antialias) by a convolution and
    #: then a blur with stride 2, as CUT does.
    downsample: Literal["stride", "antialias"] = "stride"
    #: Use dropout with probability 0.5 in the generators.
    use_dropout: bool = False
    #: Official flag for networks without dropout, which is the default here as well.
    no_dropout: bool = False
    #: Distribution of the initial weights of the convolutions.
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    #: Scale of the initial weights with --init_type normal, xavier or orthogonal.
    init_gain: float = 0.02
    #: Implementation of the networks. triton: fastcyclegan's kernels on an NVIDIA GPU; cpp: its kernels on a
    #: CPU, for every layer that they support; reference: PyTorch's operators; auto: the kernels on an NVIDIA
    #: GPU, and on a CPU those that are faster than PyTorch's operators.
    impl: Literal["auto", "cpp", "triton", "reference"] = "auto"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_minimum(self, 1, "input_nc", "output_nc", "n_layers_D", "ngf", "ndf")
        _check_minimum(self, 0, "init_gain")
        _check_maximum(self, _MOST_CHANNELS, "input_nc", "output_nc", "ngf", "ndf")
        _check_maximum(self, _MOST_LAYERS, "n_layers_D")
        if self.use_dropout and self.no_dropout:
            raise UserError("--use_dropout and --no_dropout contradict each other")
        blocks = re.fullmatch(r"resnet_([0-9]{1,9})blocks|unet_(?:128|256)", self.netG)
        if blocks is None:
            raise UserError(
                "netG must be resnet_9blocks, resnet_6blocks, resnet_Nblocks, unet_256 or unet_128, got"
                f" {described(self.netG)}"
            )
        if blocks[1] is not None and int(blocks[1]) > _MOST_BLOCKS:
            raise UserError(f"netG must have at most {_MOST_BLOCKS} blocks, got {self.netG}")
        if self.affine and self.norm != "instance":
            raise UserError(f"--affine needs --norm instance, got --norm {self.norm}")
        for name, usual in (("upsample", "transpose"), ("downsample", "stride")):
            value = getattr(self, name)
            if self.netG.startswith("unet") and value != usual:
                raise UserError(f"--{name} {value} only works with ResNet generators, not with {self.netG}")

    @property
    def size_multiple(self) -> int:
        """The height and the width of an image must be multiples of this number."""
        if self.netG.startswith("unet"):
            return int(self.netG.removeprefix("unet_"))
        return 4

    @property
    def least_side(self) -> int:
        """The smallest image side that the networks accept, in pixels.

        The output of a PatchGAN must have at least one patch, and its norms need more than one value to
        normalise.
        """
        if self.netD == "pixel":
            return 8
        layers = self.n_layers_D if self.netD == "n_layers" else 3
        return max(8, 3 * 2**layers)


@dataclass(frozen=True)
class LossConfig:
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
        _check_types(self)
        self._check_augmentations()
        _check_minimum(self, 0, "lambda_A", "lambda_B", "lambda_identity", "lambda_gp", "pool_size")
        _check_maximum(self, _MOST_IMAGES, "pool_size")
        if self.lambda_gp != LossConfig.lambda_gp and self.gan_mode != "wgangp":
            raise UserError(f"--lambda_gp only applies to --gan_mode wgangp, not to {self.gan_mode}")

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


@dataclass(frozen=True)
class OptimConfig:
    """Length of training, and settings of the Adam optimizer and its learning rate."""

    #: Number of epochs at the full learning rate.
    n_epochs: int = 100
    #: Number of epochs after --n_epochs over which the learning rate falls to 0.
    n_epochs_decay: int = 100
    #: Number of the first epoch; ignored when a run is resumed from its training state.
    epoch_count: int = 1
    #: Stop after this many iterations in total, counted from the first start of the run.
    max_iters: int | None = None
    #: Learning rate of Adam.
    lr: float = 2e-4
    #: Decay rate of Adam's first moment; the second moment's rate is 0.999.
    beta1: float = 0.5
    #: How the learning rate changes. linear: it is constant, then falls linearly to 0 over n_epochs_decay
    #: epochs; step: it is divided by 10 every lr_decay_iters epochs; plateau: it is divided by 5 whenever the
    #: epoch's mean generator loss stops falling; cosine: it follows a cosine over all epochs; constant: it
    #: never changes.
    lr_policy: Literal["linear", "step", "plateau", "cosine", "constant"] = "linear"
    #: Number of epochs between reductions of the learning rate with --lr_policy step.
    lr_decay_iters: int = 50
    #: How the learning rate depends on the batch size. sqrt: lr is multiplied by the square root of
    #: batch_size, the rule for Adam (Malladi et al. 2022); none: lr is used unchanged.
    lr_scaling: Literal["none", "sqrt"] = "none"
    #: Decay rate of running averages of the generators' weights, for example 0.999. The averages are saved
    #: along with the weights (*_net_G_A_ema.pth). With 0, no averages are kept.
    ema: float = 0.0
    #: Whether the learning rate changes at the end of an epoch, as in the official code before 2020 and
    #: since 2025, or at its start, as in 2020-24.
    lr_phase: Literal["end", "start"] = "end"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_minimum(self, 0, "n_epochs", "n_epochs_decay", "lr")
        _check_minimum(self, 1, "epoch_count", "max_iters", "lr_decay_iters")
        for name in ("beta1", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.epoch_count > self.last_epoch:
            raise UserError(
                f"nothing to train: epoch_count {self.epoch_count} is above n_epochs + n_epochs_decay ="
                f" {self.last_epoch}"
            )

    @property
    def last_epoch(self) -> int:
        return self.n_epochs + self.n_epochs_decay


@dataclass(frozen=True)
class FinetuneConfig:
    """Training that starts from generators which are trained already."""

    #: Start a new run from trained generators: one file (from A to B), two files (from A to B and from B to
    #: A), or a folder with latest_net_G_A.pth or latest_net_G_B.pth. A and B are the training folders, also
    #: with BtoA. The files can be any that translate.py reads. Settings of the generators that are not given
    #: are taken from them; the discriminators start with new weights.
    init_from: tuple[Path, ...] | None = None
    #: Start from this generator from B to A.
    init_from_B: Path | None = None
    #: Networks whose weights stay as they are, separated by commas: G_AB, G_BA, D_A, D_B. They run without
    #: dropout, and with the running statistics of batch norms.
    freeze: str | None = None
    #: Train only the discriminators for this many iterations, counted from the first start of the run and as
    #: part of it, so that trained generators do not learn from discriminators that know nothing yet.
    warmup_D: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        _check_minimum(self, 0, "warmup_D")
        if self.init_from is not None and not 1 <= len(self.init_from) <= 2:
            raise UserError(
                "--init_from takes a folder, one file (the generator from A to B), or two (the second is the"
                f" generator from B to A), got {len(self.init_from)}"
            )
        if self.freeze is not None and not all(self.frozen):
            raise UserError(
                f"freeze must be names of networks, separated by commas, got {described(self.freeze)}"
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names in ``freeze``."""
        if self.freeze is None:
            return ()
        return tuple(name.strip() for name in self.freeze.split(","))

    @property
    def is_from_files(self) -> bool:
        """Whether a new run starts from the weights of other files."""
        return self.init_from is not None or self.init_from_B is not None


@dataclass(frozen=True)
class EngineConfig:
    """How an iteration is executed. Every choice computes the same result."""

    #: Process all images of a stage in one pass per network. auto: if that does not change the result (not
    #: with batch norm); off: never.
    batching: Literal["auto", "off"] = "auto"
    #: Run both generators as one network, and likewise both discriminators. auto: if fastcyclegan's kernels
    #: compute them; on: always (for debugging); off: never.
    pairing: Literal["auto", "on", "off"] = "auto"
    #: Work that runs concurrently on a GPU. wgrad: the weight gradients; phases: the discriminators' phase as
    #: well; auto: wgrad if the iteration is a CUDA graph.
    overlap: Literal["auto", "wgrad", "phases", "off"] = "auto"
    #: Replay each iteration as one CUDA graph. auto: with --compile on a GPU, unless the iteration cannot be
    #: captured; on: stop with an error if it cannot be captured.
    graph: Literal["auto", "on", "off"] = "auto"
    #: Run each batch in parts of this many images and add up their gradients. The result is that of the whole
    #: batch, but only the memory for one part is needed.
    micro_batch: int | None = None
    #: Mark the parts of an iteration with NVTX ranges for Nsight (on a GPU).
    nvtx: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _check_minimum(self, 1, "micro_batch")


@dataclass(frozen=True)
class RunConfig:
    """The run: its name, its files, its device and its precision."""

    #: Name of the run's folder in --checkpoints_dir. Default: the dataset's name and a number.
    name: str | None = None
    #: Folder that contains the folders of all runs.
    checkpoints_dir: Path = Path("runs")
    #: Resume the run named by --name where it stopped, with its saved settings. Flags given now override
    #: them.
    continue_train: bool = False
    #: Replace the run named by --name if it exists.
    overwrite: bool = False
    #: With --continue_train, start from the *_net_*.pth files of this epoch (5, iter_1000, ...) instead of
    #: the saved state. latest: start from such files only if there is no state. previous: resume from the
    #: state before the last one, in case the run diverged.
    epoch: str = "latest"
    #: Compile the networks with torch.compile.
    compile: bool = False
    #: Device to train on: cpu, cuda, cuda:N or mps; auto uses cuda if available, then mps, then cpu.
    device: str = "auto"
    #: Official flag: 0 means --device cuda:0, -1 means --device cpu.
    gpu_ids: str | None = None
    #: Precision of the networks' computation; weights and losses are always fp32. auto: bf16 on a GPU that
    #: supports it, and with --compile on a CPU that supports it, otherwise fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: Seed for the initial weights, the samples and the replay pools.
    seed: int = 0
    #: Number of images between log lines. Default: one line per second in a terminal, otherwise one every ten
    #: seconds.
    print_freq: int | None = None
    #: Number of images between sample grids. Default: one every 30 seconds in the first ten minutes, then one
    #: whenever the run has lasted 5% longer, or less often if they would take more than 5% of the time.
    display_freq: int | None = None
    #: Keep at most this many sample grids, at least 2. The others are removed so that those kept are spread
    #: evenly on a logarithmic scale of iterations: close together at first, then ever rarer.
    keep_samples: int = 100
    #: Number of images between saves of the training state. Default: one every 5 minutes, or less often if
    #: they would take more than 1% of the time.
    save_latest_freq: int | None = None
    #: Every --save_latest_freq images, save the weights as iter_N instead of latest.
    save_by_iter: bool = False
    #: Number of epochs between permanent copies of the weights (5_net_G_A.pth and so on); 0 keeps no copies.
    save_epoch_freq: int = 5
    #: Keep only the newest N permanent copies of the weights (5_net_G_A.pth and so on). The copies of
    #: save_by_iter are counted separately. Default: keep all.
    keep_epochs: int | None = None
    #: Also log to Weights & Biases (extra wandb).
    use_wandb: bool = False
    #: Name of the project there, with --use_wandb.
    wandb_project_name: str = "CycleGAN-and-pix2pix"
    #: Print the resolved configuration and exit.
    dry_run: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _check_minimum(self, 0, "seed", "save_epoch_freq")
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, got {self.seed}")
        _check_minimum(self, 1, "print_freq", "display_freq", "save_latest_freq", "keep_epochs")
        _check_minimum(self, 2, "keep_samples")
        if self.name is not None and not is_folder_name(self.name):
            raise UserError(f"name must be a plain folder name, got {described(self.name)}")
        if self.continue_train and self.overwrite:
            raise UserError("--continue_train and --overwrite contradict each other")
        if self.epoch != "latest" and not self.continue_train:
            raise UserError("--epoch needs --continue_train")
        if not re.fullmatch(r"latest|previous|(iter_)?[0-9]{1,18}", self.epoch):
            raise UserError(
                f"epoch must be latest, previous, a number or iter_N, got {described(self.epoch)}"
            )
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", self.device):
            raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {described(self.device)}")
        if self.gpu_ids is not None and not re.fullmatch(r"-1|[0-9]{1,2}", self.gpu_ids):
            raise UserError(
                "gpu_ids must be one number, or -1 for the CPU (a run uses one GPU), got"
                f" {described(self.gpu_ids)}"
            )
        if not self.wandb_project_name:
            raise UserError("wandb_project_name must not be empty")
        if self.gpu_ids is not None and self.device != "auto":
            raise UserError("--gpu_ids and --device both set the device: give only one of them")


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration of a training run. Raises UserError if its parts contradict each other."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def scaled_lr(self, batch: int) -> float:
        """Return the initial learning rate for batches of ``batch`` images, scaled by ``lr_scaling``."""
        scale = 1.0
        if self.optim.lr_scaling == "sqrt":
            scale = math.sqrt(batch)
        return self.optim.lr * scale

    def __post_init__(self) -> None:
        if self.data.preprocess in FIXED_SIZE:
            self._check_crop()
        if self.loss.lambda_identity > 0 and self.model.input_nc != self.model.output_nc:
            raise UserError(
                "the identity loss needs equal channel counts, got input_nc"
                f" {self.model.input_nc} and output_nc {self.model.output_nc}: use --lambda_identity 0"
            )
        limit, warmup = self.optim.max_iters, self.finetune.warmup_D
        if limit is not None and warmup > limit:
            raise UserError(f"warmup_D {warmup} is longer than the run, which has max_iters {limit}")
        if self.loss.gan_mode == "wgangp" and self.data.preprocess not in FIXED_SIZE:
            raise UserError(
                "wgangp mixes real and fake images, so they must be of equal size, which --preprocess"
                f" {self.data.preprocess} does not guarantee"
            )

    def _check_crop(self) -> None:
        multiple, least = self.model.size_multiple, self.model.least_side
        for name, side in named_sides(self.data.crop_size).items():
            if side % multiple:
                reason = f"{self.model.netG} would return images of a different size"
                raise UserError(f"{name} is not a multiple of {multiple}: {reason}")
            if side < least:
                needed = f"--netD {self.model.netD} needs at least {least} pixels"
                raise UserError(f"{name} is too small: {needed}")


# Changes of the defaults for training on the built-in dataset: small images and networks, which take a few
# minutes on two cores.
BUILTIN: Mapping[str, Mapping[str, Any]] = {
    "data": {"load_size": 64, "crop_size": 64, "num_threads": 0},
    "model": {"netG": "resnet_2blocks", "ngf": 16, "ndf": 32, "netD": "n_layers", "n_layers_D": 2},
    "optim": {"n_epochs": 3, "n_epochs_decay": 3, "lr": 4e-4},
    "run": {"save_epoch_freq": 0},
}


def with_changes(config: TrainConfig, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return a copy of ``config`` with ``changes`` applied, a dict of new values by group and field."""
    groups = {}
    for group, fields in changes.items():
        groups[group] = dataclasses.replace(getattr(config, group), **fields)
    return dataclasses.replace(config, **groups)


def to_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return ``config`` as nested dicts of plain JSON values, by group."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


# The groups that are missing from configurations saved by older versions.
LATER = ("engine", "finetune")


def from_dict(saved: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Rebuild a configuration from ``saved``, the output of ``to_dict``. Missing fields get their defaults.

    Raises UserError, which names the group or the setting, if ``saved`` is not such a configuration, or has
    unknown groups or settings.
    """
    fields = dataclasses.fields(TrainConfig)
    names = [group.name for group in fields if group.name not in LATER]
    if not isinstance(saved, Mapping) or not all(name in saved for name in names):
        raise UserError(f"it lacks at least one of the groups {', '.join(names)}")
    _require_known("groups", saved, {group.name for group in fields})
    groups: dict[str, Any] = {}
    for group in fields:
        groups[group.name] = _group_from(group.name, saved.get(group.name, {}))
    return TrainConfig(**groups)


def _require_known(kind: str, found: Mapping[Any, Any], known: Collection[str]) -> None:
    unknown = [joined("", name) for name in found if name not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        listed = ", ".join(sorted(unknown)[:5])
        raise UserError(f"it has {kind} that are unknown to this version: {listed}{more}")


def _group_from(name: str, saved: Any) -> Any:
    """Rebuild the group ``name`` of a configuration from ``saved``, its part of the output of ``to_dict``."""
    if not isinstance(saved, Mapping):
        raise UserError(f"{name} must be a group of settings, got {described(saved)}")
    kind = type(getattr(TrainConfig(), name))
    hints = get_type_hints(kind)
    _require_known("settings", saved, hints)
    values = dict(saved)
    for setting, value in values.items():
        kinds = (hints[setting], *get_args(hints[setting]))
        if isinstance(value, str) and Path in kinds:
            values[setting] = _path(setting, value)
        elif isinstance(value, list) and tuple[Path, ...] in kinds:
            values[setting] = tuple(_path(setting, item) for item in value)
    return kind(**values)


def _path(setting: str, value: Any) -> Any:
    """Return the path that ``value`` of ``setting`` names, or a ``value`` that is no text as it is."""
    if value == "":  # Path would take it for the working folder
        raise UserError(f"{setting} must be a path, got ''")
    return Path(value) if isinstance(value, str) else value
