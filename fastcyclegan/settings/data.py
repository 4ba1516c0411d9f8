"""The settings for training images: where they are and how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcyclegan.errors import UserError
from fastcyclegan.settings.checks import check_maximum, check_minimum, check_types
from fastcyclegan.settings.crop_size import MOST_PIXELS, CropSize, checked_crop_size, named_sides, sides_of

Direction = Literal["AtoB", "BtoA"]
Preprocess = Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]
Layout = Literal["unaligned", "aligned", "single"]
FIXED_SIZE = ("resize_and_crop", "crop", "scale_width_and_crop")
# More than any use needs, but little enough to be refused before memory or time run out.
_MOST_THREADS = 4096


@dataclass(frozen=True)
class DataConfig:
    """Training images: where they are and how they are prepared."""

    #: Dataset folder. Unaligned: trainA/ and trainB/ (and testA/, testB/), or train/A and train/B (and
    #: test/A, test/B). Aligned or single: train/ (and val/ or test/).
    dataroot: Path | None = None
    #: Folder of images of domain A, given together with --data_B instead of --dataroot; see also --holdout.
    data_A: Path | None = None
    #: Folder of images of domain B, given together with --data_A. With --dataset_mode aligned, images of the
    #: same name (apart from the suffix, and from _A or _B before it) are a pair.
    data_B: Path | None = None
    #: Folder of images, for a recipe that trains on single images.
    data: Path | None = None
    #: Fraction of the images in --data_A and --data_B, or in --data, to hold out of training and show in the
    #: sample grids. A hash of the seed and the file name determines which images are held out.
    holdout: float = 0.05
    #: Direction in which the model translates, or that of CycleGAN's G_A. BtoA swaps the folders: folder B
    #: becomes the model's domain A.
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
    #: How the images are laid out. unaligned: two domains; aligned: pairs, side by side in one file (A on the
    #: left) or in two folders; single: one folder. Each recipe has its own default, and single is the default
    #: with --data.
    dataset_mode: Layout = "unaligned"

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))  # the class is frozen
        check_types(self)
        check_minimum(self, 1, "load_size", "batch_size", "max_dataset_size")
        check_minimum(self, 0, "num_threads")
        check_maximum(self, MOST_PIXELS, "load_size")
        check_maximum(self, _MOST_THREADS, "num_threads")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout must be in [0, 1), got {self.holdout}")
        self._check_folders()
        if self.dataset_mode == "single":
            self._check_single()
        elif self.data is not None:
            raise UserError(
                f"--data is a folder of single images, but this run trains on the layout {self.dataset_mode}"
            )
        self._check_load_size()

    def _check_folders(self) -> None:
        if (self.data_A is None) != (self.data_B is None):
            raise UserError("--data_A and --data_B must be given together")
        if self.holdout != DataConfig.holdout and self.data_A is None and self.data is None:
            raise UserError(
                "--holdout only applies to --data_A and --data_B, and to --data; with --dataroot, the folders"
                " test (or val) are held out"
            )
        if self.dataroot is not None and self.data_A is not None:
            raise UserError("give either --dataroot, or --data_A and --data_B, but not both")
        if self.data is not None and (self.dataroot is not None or self.data_A is not None):
            raise UserError(
                "give either --data, or --dataroot, or --data_A and --data_B, but only one of them"
            )

    def _check_single(self) -> None:
        if self.data_A is not None:
            raise UserError(
                "--data_A and --data_B are two domains; for single images, give one --data FOLDER"
            )
        if self.direction != "AtoB":
            raise UserError("--direction BtoA swaps A and B, but single images have no B")

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
        return self.dataroot is None and self.data_A is None and self.data is None

    @property
    def sides(self) -> tuple[str, ...]:
        """The names of the domains that an image of each sample belongs to: A and B, or only A."""
        return ("A",) if self.dataset_mode == "single" else ("A", "B")
