"""The settings for the length of training, the optimizer and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastcyclegan.errors import UserError
from fastcyclegan.settings.checks import check_minimum, check_types


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
        check_types(self)
        check_minimum(self, 0, "n_epochs", "n_epochs_decay", "lr")
        check_minimum(self, 1, "epoch_count", "max_iters", "lr_decay_iters")
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
