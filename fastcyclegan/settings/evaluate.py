"""The settings of evaluate.py. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from fastcyclegan.errors import UserError
from fastcyclegan.settings.checks import check_maximum, check_minimum, check_types
from fastcyclegan.settings.data import Direction
from fastcyclegan.settings.metrics import LARGEST_SIDE, MetricConfig, MetricName
from fastcyclegan.settings.run import RunConfig

_OF_WEIGHTS = (
    *("dataroot", "direction", "epoch", "key", "ema", "eval", "no_dropout", "seed", "image_size"),
    "precision",
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure images: FID and KID between two folders, and L1, PSNR, SSIM and LPIPS of the images with the
    same names. With --weights, the held-out images of a dataset are translated first.
    """

    #: Folder of the images to measure.
    fake: Path | None = None
    #: Folder of real images to compare them with.
    real: Path | None = None
    #: Folder of a run, or a file with a generator's weights, to translate the held-out images with.
    weights: Path | None = None
    #: With --weights: dataset whose held-out images are translated (testA, or val or test for pairs).
    #: Default: the one that the run was trained on.
    dataroot: Path | None = None
    #: With --weights: whether to translate from training folder A to B or from B to A. Default: the direction
    #: that the run was trained with.
    direction: Direction | None = None
    #: With --weights: epoch of the weights to use (latest, best, 5, iter_1000, ...).
    epoch: str = "latest"
    #: With --weights: generator to use if a file contains several.
    key: str | None = None
    #: With --weights: use the running averages of the weights.
    ema: bool = False
    #: With --weights: use the running statistics of batch norm, and no dropout, with networks of pix2pix.
    eval: bool = False
    #: With --weights: no dropout with networks of pix2pix.
    no_dropout: bool = False
    #: With --weights: seed of the dropout masks of networks of pix2pix. Default: that of the run, or 0.
    seed: int | None = None
    #: With --weights: side in pixels of the square that source images and real images are resized to; none
    #: keeps their sizes. Default: as the run evaluates its weights, which is in the size that it trains on;
    #: none for a file that is not in the folder of a run.
    image_size: int | Literal["none"] | None = None
    #: Metrics to compute, such as fid kid l1 psnr ssim lpips. Default: all that the images allow.
    metrics: tuple[str, ...] | None = None
    #: Number of bootstrap samples for a 95% interval of each metric. 0 computes none.
    resample: int = 0
    #: Write the numbers and their protocol to this file.
    json: Path | None = None
    #: Write an HTML page with the numbers, the best pairs and the worst pairs to this file.
    page: Path | None = None
    #: Also print the differences from the numbers in this file, which --json wrote. Numbers of another
    #: protocol are refused.
    compare: Path | None = None
    #: Read images of any size, as far as the memory allows. By default, images above 179 megapixels, those
    #: that take more than 1 GiB to decode, and JPEG files of more than 100 scans are bad images. A small
    #: file can claim any amount of memory and time, so only use this for files that you trust.
    allow_decompression_bombs: bool = False
    #: Device to use: cpu, cuda, cuda:N or mps; auto uses cuda if available, then mps, then cpu.
    device: str = "auto"
    #: Precision in which the images are translated. The metrics are always computed in fp32 and fp64.
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    metric: MetricConfig = field(default_factory=MetricConfig)

    def __post_init__(self) -> None:
        check_types(self)
        # Reuse the checks of the training configuration.
        RunConfig(epoch=self.epoch, continue_train=True, device=self.device, precision=self.precision)
        check_minimum(self, 0, "seed", "resample")
        check_maximum(self, 10_000, "resample")
        if isinstance(self.image_size, int):
            check_minimum(self, 8, "image_size")
            check_maximum(self, LARGEST_SIDE, "image_size")
        if self.metrics is not None and not self.metrics:
            raise UserError("metrics must be names of metrics, such as fid, got none")
        self._require_one_way()
        self._require_effect()

    def _require_effect(self) -> None:
        """Raise UserError for a setting of a metric that is not asked for."""
        if self.metrics is None or not {*self.metrics} <= {*get_args(MetricName)}:
            return  # an unknown one is told with the others that there are
        for setting in fields(MetricConfig):
            needed = ("lpips",) if setting.name.startswith("lpips") else ("fid", "kid")
            if getattr(self.metric, setting.name) != setting.default and not {*needed} & {*self.metrics}:
                raise UserError(f"--{setting.name} has no effect without --metrics {' or '.join(needed)}")

    def _require_one_way(self) -> None:
        """Raise UserError unless there are either two folders or weights."""
        if self.weights is None:
            if self.fake is None or self.real is None:
                raise UserError("give two folders of images, --fake and --real, or --weights")
            for setting in fields(self):
                if setting.name in _OF_WEIGHTS and getattr(self, setting.name) != setting.default:
                    raise UserError(
                        f"--{setting.name} needs --weights: the images in --fake are translations already"
                    )
        elif self.fake is not None or self.real is not None:
            name = "fake" if self.fake is not None else "real"
            raise UserError(
                f"--{name} and --weights contradict each other: --weights translates images itself"
            )
