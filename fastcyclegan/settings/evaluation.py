"""The settings for evaluations during training."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_maximum, check_minimum, check_types
from fastcyclegan.settings.data import Direction
from fastcyclegan.settings.metrics import LpipsNet, MetricConfig, MetricName, ResizeRule


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluations of the weights during training, which keep the best ones."""

    #: Evaluate the weights on the held-out images every N epochs, or with it after the number, every N
    #: iterations (2000it). Default: as often as --eval_share allows if --eval_metric is given, else never.
    eval_every: str | None = None
    #: Metric that decides which weights are the best; they are kept as best_net_*.pth. Default: l1 for pairs,
    #: otherwise fid.
    eval_metric: MetricName | None = None
    #: Largest share of the time that evaluations take, without --eval_every.
    eval_share: float = 0.05
    #: Direction that decides, if there are two. Default: the mean of both.
    eval_direction: Direction | None = None
    #: End the run when this many evaluations in a row were no better than the best one before.
    patience: int | None = None
    #: Feature network of FID and KID: inception, vgg16 or a TorchScript file, as for evaluate.py. The code in
    #: a file is run, so only use files that you trust.
    eval_features: str = "inception"
    #: Side in pixels to which images are resized for that network; none leaves them. Default: 299 for
    #: inception, 224 for vgg16, none for a file.
    eval_features_size: int | Literal["none"] | None = None
    #: File with the weights of vgg16. Default: the published file.
    eval_feature_weights: Path | None = None
    #: How images are resized for that network: as clean-fid does, or as older numbers were computed.
    eval_resize: ResizeRule = "clean"
    #: Network of LPIPS.
    eval_lpips_net: LpipsNet = "alex"
    #: File with the weights of that network. Default: the published file.
    eval_lpips_weights: Path | None = None

    def __post_init__(self) -> None:
        if type(self.eval_every) is int:  # epochs, as a caller from Python may write them
            object.__setattr__(self, "eval_every", str(self.eval_every))
        check_types(self)
        check_minimum(self, 1, "patience")
        check_maximum(self, 0.5, "eval_share")
        if self.eval_share <= 0:
            raise UserError(f"eval_share must be above 0, got {self.eval_share}")
        if self.eval_every is not None and not re.fullmatch(r"0*[1-9][0-9]{0,14}(it)?", self.eval_every):
            raise UserError(
                "eval_every must be a number of epochs, such as 5, or of iterations, such as 2000it, got"
                f" {described(self.eval_every)}"
            )
        try:
            self.metric_config()
        except UserError as error:  # which begins with the name of a setting
            raise UserError(f"eval_{error}") from None

    @property
    def asks(self) -> bool:
        """Whether the run evaluates its weights."""
        return self.eval_every is not None or self.eval_metric is not None

    @property
    def every(self) -> tuple[int, bool] | None:
        """The number in ``eval_every``, and whether it counts iterations; None without it."""
        if self.eval_every is None:
            return None
        return int(self.eval_every.removesuffix("it")), self.eval_every.endswith("it")

    def metric_config(self) -> MetricConfig:
        """Return how the metrics are computed."""
        names = {setting.name for setting in fields(MetricConfig)}
        values = {setting.name.removeprefix("eval_"): setting.name for setting in fields(self)}
        return MetricConfig(**{name: getattr(self, values[name]) for name in names & values.keys()})
