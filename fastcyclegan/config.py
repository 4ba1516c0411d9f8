"""What a training run is made of: frozen dataclasses, each default written once, each value checked.

The names are the official flags where the official code has one. The text below a field is its help on the
command line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastcyclegan.errors import UserError

Direction = Literal["AtoB", "BtoA"]
Preprocess = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
FIXED_SIZE = ("resize_and_crop", "crop", "scale_width_and_crop")


def _check_types(config: Any) -> None:
    """Raise UserError where a field does not hold what it says (the command line checks this too; this is for
    Python and config.json).
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise UserError(f"{name} must be one of {', '.join(get_args(hint))}, got {value!r}")
            continue
        kinds = get_args(hint)
        if not kinds:
            kinds = (hint,)
        wanted = kinds
        if float in kinds:
            wanted = (*kinds, int)
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{name} must be {names}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} must be finite, got {value}")


def _check_least(config: Any, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise UserError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """Images: where they are and how they become samples."""

    #: Folder with trainA/ trainB/ (and testA/ testB/), or train/A train/B (test/A test/B). Nothing given: the
    #: built-in dataset.
    dataroot: Path | None = None
    #: Folder of images of A; with --data_B, instead of --dataroot. A part of both is held out for the
    #: samples, see --holdout.
    data_A: Path | None = None
    #: Folder of images of B.
    data_B: Path | None = None
    #: Share of --data_A and --data_B that is held out of training, chosen by a hash of the seed and the file
    #: name.
    holdout: float = 0.05
    #: BtoA: folder B is the model's A, so that G_A translates B to A.
    direction: Direction = "AtoB"
    #: resize_and_crop: to load_size squared, then a random crop. scale_width: width to load_size, height in
    #: proportion. none: as it is, sides rounded to a multiple of 4.
    preprocess: Preprocess = "resize_and_crop"
    #: Side (or width) in pixels that images are resized to before the crop. Resizing is bicubic and
    #: antialiased.
    load_size: int = 286
    #: Side in pixels of the random crop, a multiple of 4 (of 256 for unet_256). load_size above it is the
    #: jitter against overfitting.
    crop_size: int = 256
    #: Do not mirror images at random.
    no_flip: bool = False
    #: Images of each domain in an iteration.
    batch_size: int = 1
    #: Take images in the order of their names, B[i] with A[i], instead of shuffled and at random.
    serial_batches: bool = False
    #: At most this many images of each domain: the first by name.
    max_dataset_size: int | None = None
    #: Loader threads of dali (default: one a core, at most 16), or loader processes of folder (default 4; 0
    #: loads in the main one).
    num_threads: int | None = None
    #: What reads images: dali (on a GPU where there is one), or folder (Pillow). auto takes dali where it
    #: is installed and works.
    loader: Literal["auto", "dali", "folder"] = "auto"
    #: ram, gpu: keep every decoded, resized image in memory there (refused where they take more than half
    #: of what is free).
    cache: Literal["none", "ram", "gpu"] = "none"
    #: Leave out images that cannot be read, or are smaller than the crop, and list them; without this they
    #: end the run.
    skip_bad_images: bool = False
    #: Official flag; only unaligned exists.
    dataset_mode: Literal["unaligned"] = "unaligned"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 1, "load_size", "crop_size", "batch_size", "max_dataset_size")
        _check_least(self, 0, "num_threads")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout must be in [0, 1), got {self.holdout}")
        if (self.data_A is None) != (self.data_B is None):
            raise UserError("--data_A and --data_B go together: both folders are needed")
        if self.holdout != DataConfig.holdout and self.data_A is None:
            raise UserError("--holdout belongs to --data_A and --data_B; a dataroot has its test folders")
        if self.dataroot is not None and self.data_A is not None:
            raise UserError("give either --dataroot or --data_A and --data_B, not both")
        resized = self.preprocess in ("resize_and_crop", "scale_width_and_crop")
        if resized and self.crop_size > self.load_size:
            raise UserError(f"crop_size {self.crop_size} is larger than load_size {self.load_size}")
        if self.batch_size > 1 and self.preprocess not in FIXED_SIZE:
            raise UserError(
                f"batch_size {self.batch_size} needs images of one size; --preprocess {self.preprocess}"
                " keeps their own"
            )

    @property
    def is_builtin(self) -> bool:
        """Whether no images were named, so that the built-in dataset is drawn."""
        return self.dataroot is None and self.data_A is None


@dataclass(frozen=True)
class ModelConfig:
    """Networks."""

    #: Official flag; only cycle_gan exists.
    model: Literal["cycle_gan"] = "cycle_gan"
    #: Channels of A: 3 is colour, 1 is gray.
    input_nc: int = 3
    #: Channels of B.
    output_nc: int = 3
    #: Generator: resnet_9blocks, resnet_6blocks (any resnet_Nblocks), unet_256 or unet_128.
    netG: str = "resnet_9blocks"
    #: Discriminator: basic is the 70x70 PatchGAN, n_layers takes --n_layers_D, pixel judges single pixels.
    netD: Literal["basic", "n_layers", "pixel"] = "basic"
    #: Layers of --netD n_layers.
    n_layers_D: int = 3
    #: Channels of the generators' first layer.
    ngf: int = 64
    #: Channels of the discriminators' first layer.
    ndf: int = 64
    #: Normalisation of generators and discriminators.
    norm: Literal["instance", "batch", "none"] = "instance"
    #: Give instance norm a scale and a shift a channel, which are trained.
    affine: bool = False
    #: How a ResNet generator grows: transposed convolution, or resize and convolution (no checkerboards).
    upsample: Literal["transpose", "resize"] = "transpose"
    #: Dropout 1/2 in the generators.
    use_dropout: bool = False
    #: Official flag: no dropout, which is the default here as there.
    no_dropout: bool = False
    #: Initial weights of the convolutions.
    init_type: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    #: Scale of normal, xavier and orthogonal.
    init_gain: float = 0.02
    #: What computes the networks. auto takes our kernels on an NVIDIA GPU, PyTorch's operators elsewhere.
    impl: Literal["auto", "triton", "reference"] = "auto"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 1, "input_nc", "output_nc", "n_layers_D", "ngf", "ndf")
        _check_least(self, 0, "init_gain")
        if self.use_dropout and self.no_dropout:
            raise UserError("--use_dropout and --no_dropout contradict each other")
        if not re.fullmatch(r"resnet_\d+blocks|unet_(128|256)", self.netG):
            raise UserError(
                "netG must be resnet_9blocks, resnet_6blocks, resnet_Nblocks, unet_256 or unet_128, got"
                f" {self.netG!r}"
            )
        if self.affine and self.norm != "instance":
            raise UserError(f"--affine belongs to --norm instance, not to {self.norm}")
        if self.netG.startswith("unet") and self.upsample != "transpose":
            raise UserError(
                f"--upsample {self.upsample} belongs to the ResNet generators, not to {self.netG}"
            )
        for name in ("input_nc", "output_nc"):
            if getattr(self, name) not in (1, 3):
                raise UserError(f"{name} must be 3 (colour) or 1 (gray), got {getattr(self, name)}")

    @property
    def size_multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        if self.netG.startswith("unet"):
            return int(self.netG.removeprefix("unet_"))
        return 4

    @property
    def least_side(self) -> int:
        """The smallest side that the networks can take: the PatchGAN must end on one patch, and normalise
        more than one before it.
        """
        if self.netD == "pixel":
            return 8
        layers = self.n_layers_D if self.netD == "n_layers" else 3
        return max(8, 3 * 2**layers)


@dataclass(frozen=True)
class LossConfig:
    """Losses and the replay pool."""

    #: Adversarial loss: least squares, cross entropy, or Wasserstein with gradient penalty.
    gan_mode: Literal["lsgan", "vanilla", "wgangp"] = "lsgan"
    #: Weight of the cycle A to B to A.
    lambda_A: float = 10.0
    #: Weight of the cycle B to A to B.
    lambda_B: float = 10.0
    #: Weight of the identity loss, relative to lambda_A and lambda_B; 0 saves its passes.
    lambda_identity: float = 0.5
    #: Weight of the gradient penalty of wgangp.
    lambda_gp: float = 10.0
    #: Slots of each replay pool; 0 shows the discriminators the newest images alone.
    pool_size: int = 50

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 0, "lambda_A", "lambda_B", "lambda_identity", "lambda_gp", "pool_size")
        if self.lambda_gp != LossConfig.lambda_gp and self.gan_mode != "wgangp":
            raise UserError(f"--lambda_gp belongs to --gan_mode wgangp, not to {self.gan_mode}")


@dataclass(frozen=True)
class OptimConfig:
    """Length of training, Adam and its learning rate."""

    #: Epochs at the full learning rate.
    n_epochs: int = 100
    #: Epochs after those, over which the learning rate falls to 0.
    n_epochs_decay: int = 100
    #: Number of the first epoch (a run that is continued from its state ignores it).
    epoch_count: int = 1
    #: Stop after this many iterations in all, counted from the first start of the run.
    max_iters: int | None = None
    #: Learning rate of Adam.
    lr: float = 2e-4
    #: First moment's decay of Adam; the second is 0.999.
    beta1: float = 0.5
    #: linear: constant, then down to 0 over n_epochs_decay. step: a tenth every lr_decay_iters epochs.
    #: plateau: a fifth when the epoch's mean generator loss stops falling. cosine: over all epochs.
    lr_policy: Literal["linear", "step", "plateau", "cosine", "constant"] = "linear"
    #: Epochs between the steps of --lr_policy step.
    lr_decay_iters: int = 50
    #: sqrt: multiply lr by the square root of batch_size, the rule for Adam (Malladi et al. 2022). none: lr
    #: is what is given.
    lr_scaling: Literal["none", "sqrt"] = "none"
    #: Keep running averages of the generators' weights with this decay, such as 0.999, and save them
    #: beside (*_net_G_A_ema.pth).
    ema: float = 0.0
    #: Step the schedule at the end of an epoch (official code before 2020 and since 2025) or at its
    #: start (2020-24).
    lr_phase: Literal["end", "start"] = "end"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 0, "n_epochs", "n_epochs_decay", "lr")
        _check_least(self, 1, "epoch_count", "max_iters", "lr_decay_iters")
        for name in ("beta1", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.epoch_count > self.last_epoch:
            raise UserError(
                f"nothing to train: epoch_count {self.epoch_count} is past n_epochs + n_epochs_decay ="
                f" {self.last_epoch}"
            )

    @property
    def last_epoch(self) -> int:
        return self.n_epochs + self.n_epochs_decay


@dataclass(frozen=True)
class EngineConfig:
    """How an iteration is run. Every choice computes the same."""

    #: auto: each network sees all its images of a stage in one pass, where that changes nothing (not with
    #: batch norm).
    batching: Literal["auto", "off"] = "auto"
    #: Run both generators as one, and both discriminators. auto: where our kernels compute them; on:
    #: elsewhere too (for debugging).
    pairing: Literal["auto", "on", "off"] = "auto"
    #: On a GPU, work beside other work. wgrad: weight gradients; phases: the discriminators' phase too. auto:
    #: wgrad in a CUDA graph.
    overlap: Literal["auto", "wgrad", "phases", "off"] = "auto"
    #: Replay an iteration as one CUDA graph. auto: with --compile on a GPU, unless it cannot be captured; on:
    #: end the run if it cannot.
    graph: Literal["auto", "on", "off"] = "auto"
    #: Run a batch in parts of this many images, their gradients added: the result of the whole batch in the
    #: memory of a part.
    micro_batch: int | None = None
    #: Name the parts of an iteration for Nsight (on a GPU).
    nvtx: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 1, "micro_batch")


@dataclass(frozen=True)
class RunConfig:
    """The run: its name, its files, and what it runs on."""

    #: Name of the run's folder under --checkpoints_dir. Default: the dataset's name and a number.
    name: str | None = None
    #: Where runs are kept.
    checkpoints_dir: Path = Path("runs")
    #: Take up the run --name where it stopped, with its own settings; flags given now win over them.
    continue_train: bool = False
    #: Replace the run --name if it exists.
    overwrite: bool = False
    #: With --continue_train: which *_net_*.pth to start from where there is no state.pt, or, if not latest,
    #: instead of it.
    epoch: str = "latest"
    #: Compile the networks with torch.compile.
    compile: bool = False
    #: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
    device: str = "auto"
    #: Official flag: 0 is --device cuda:0, -1 is --device cpu.
    gpu_ids: str | None = None
    #: auto: bf16 on a GPU that has it, and with --compile on a processor that has it; else fp32. Weights and
    #: losses are fp32 always.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: Seed of weights, samples and pools.
    seed: int = 0
    #: Images between log lines. Default: every second in a terminal, every ten elsewhere.
    print_freq: int | None = None
    #: Images between sample grids. Default: every 30 seconds, and never more than a twentieth of the time.
    display_freq: int | None = None
    #: Images between saves of the state. Default: every 5 minutes, and never more than a hundredth of the
    #: time.
    save_latest_freq: int | None = None
    #: Name the weights of those saves iter_N instead of latest.
    save_by_iter: bool = False
    #: Epochs between the copies of the weights that are kept (5_net_G_A.pth and so on); 0 keeps none.
    save_epoch_freq: int = 5
    #: Print the resolved configuration and exit.
    dry_run: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _check_least(self, 0, "seed", "save_epoch_freq")
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, got {self.seed}")
        _check_least(self, 1, "print_freq", "display_freq", "save_latest_freq")
        if self.name is not None:
            is_one_part = Path(self.name).name == self.name
            if self.name.startswith(".") or not is_one_part or not self.name.isprintable():
                raise UserError(f"name must be a plain folder name, got {self.name!r}")
        if self.continue_train and self.overwrite:
            raise UserError("--continue_train and --overwrite contradict each other")
        if self.epoch != "latest" and not self.continue_train:
            raise UserError("--epoch belongs to --continue_train")
        if not re.fullmatch(r"latest|\d+|iter_\d+", self.epoch):
            raise UserError(f"epoch must be latest, a number or iter_N, got {self.epoch!r}")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {self.device!r}")
        if self.gpu_ids is not None and not re.fullmatch(r"-1|\d+", self.gpu_ids):
            raise UserError(
                f"gpu_ids must be one number, or -1 for the CPU (a run uses one GPU), got {self.gpu_ids!r}"
            )
        if self.gpu_ids is not None and self.device != "auto":
            raise UserError("--gpu_ids and --device say the same thing: give one of them")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run. Raises UserError where its parts do not fit together."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def scaled_lr(self, batch: int) -> float:
        """Return the learning rate at the start with batches of ``batch``: ``lr``, scaled as ``lr_scaling``
        says.
        """
        scale = 1.0
        if self.optim.lr_scaling == "sqrt":
            scale = math.sqrt(batch)
        return self.optim.lr * scale

    def __post_init__(self) -> None:
        multiple, crop = self.model.size_multiple, self.data.crop_size
        if self.data.preprocess in FIXED_SIZE and crop % multiple:
            why = f"{self.model.netG} would return another size"
            raise UserError(f"crop_size {crop} is not a multiple of {multiple}: {why}")
        least = self.model.least_side
        if self.data.preprocess in FIXED_SIZE and crop < least:
            raise UserError(
                f"crop_size {crop} is too small: --netD {self.model.netD} needs at least {least} pixels"
            )
        if self.loss.lambda_identity > 0 and self.model.input_nc != self.model.output_nc:
            raise UserError(
                f"the identity loss needs equal channels, got input_nc {self.model.input_nc} and output_nc"
                f" {self.model.output_nc}: use --lambda_identity 0"
            )
        if self.loss.gan_mode == "wgangp" and self.data.preprocess not in FIXED_SIZE:
            raise UserError(
                "wgangp mixes real and fake images, so they must be of one size; --preprocess"
                f" {self.data.preprocess} is not"
            )


# What differs from the defaults when the built-in dataset is trained: small images and networks, a few
# minutes on two cores.
BUILTIN: Mapping[str, Mapping[str, Any]] = {
    "data": {"load_size": 64, "crop_size": 64, "num_threads": 0},
    "model": {"netG": "resnet_2blocks", "ngf": 16, "ndf": 32, "netD": "n_layers", "n_layers_D": 2},
    "optim": {"n_epochs": 3, "n_epochs_decay": 3, "lr": 4e-4},
    "run": {"save_epoch_freq": 0},
}


def with_changes(config: TrainConfig, changes: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return ``config`` with ``changes`` (group to field to value) made."""
    groups = {}
    for group, fields in changes.items():
        groups[group] = dataclasses.replace(getattr(config, group), **fields)
    return dataclasses.replace(config, **groups)


def to_dict(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Return ``config`` as plain JSON values by group."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


# A group that configurations of older versions do not have.
LATER = "engine"


def from_dict(saved: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
    """Return the configuration that ``to_dict`` gave. Fields that it lacks take their defaults.

    Raises UserError for what is no such configuration, and for fields that are unknown here.
    """
    names = [group.name for group in dataclasses.fields(TrainConfig) if group.name != LATER]
    if not isinstance(saved, Mapping) or not all(isinstance(saved.get(name), Mapping) for name in names):
        raise UserError(f"it lacks one of the groups {', '.join(names)}")
    saved = {LATER: {}, **saved}
    groups: dict[str, Any] = {}
    for group in dataclasses.fields(TrainConfig):
        kind = type(getattr(TrainConfig(), group.name))
        hints = get_type_hints(kind)
        values = dict(saved[group.name])
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise UserError(f"config.json has settings that this version does not know: {', '.join(unknown)}")
        for name, value in values.items():
            if isinstance(value, str) and Path in (hints[name], *get_args(hints[name])):
                values[name] = Path(value)
        groups[group.name] = kind(**values)
    return TrainConfig(**groups)
