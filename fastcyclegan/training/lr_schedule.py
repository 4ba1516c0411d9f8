"""The learning rate of an epoch.

Epochs are numbered from 1. A schedule stepped at the end of an epoch trains epoch n with the factor f(n - 1),
one stepped at the start with f(n), where f(e) is the factor after e steps. The linear rule is the official
one: 1 - max(0, e + 1 - n_epochs) / (n_epochs_decay + 1). Every rule but plateau depends on the number of the
epoch alone, so that a resumed run needs nothing but that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastcyclegan.config import OptimConfig

Factor = Callable[[int], float]


def _rule(config: OptimConfig) -> Factor:
    whole = max(1, config.last_epoch)
    rules: dict[str, Factor] = {
        "linear": lambda e: 1.0 - max(0, e + 1 - config.n_epochs) / (config.n_epochs_decay + 1),
        "step": lambda e: 0.1 ** (e // config.lr_decay_iters),
        "cosine": lambda e: 0.5 * (1 + math.cos(math.pi * min(e, whole) / whole)),
        "constant": lambda e: 1.0,
    }
    return rules[config.lr_policy]


class Schedule:
    """Learning rate by epoch. ``policy``, a function from steps taken (from 0) to a factor, takes the place
    of the configured one.
    """

    def __init__(self, config: OptimConfig, policy: Factor | None = None) -> None:
        self.base, self.steps_ahead = config.lr, {"end": -1, "start": 0}[config.lr_phase]
        self.rule = _rule(config) if policy is None else policy

    def lr(self, epoch: int) -> float:
        """Return the learning rate that epoch ``epoch`` (from 1) trains with."""
        return self.base * max(0.0, self.rule(epoch + self.steps_ahead))

    def end_epoch(self, metric: float) -> None:
        """Take note of the mean generator loss of the epoch that ended; only plateau uses it."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what ``state_dict`` gave."""


class PlateauSchedule(Schedule):
    """A fifth of the rate once the metric has not fallen by 1 % of its best for more than 5 epochs, as
    torch's ReduceLROnPlateau has it.

    The rate changes after an epoch's metric is known, so ``lr_phase`` makes no difference here.
    """

    FACTOR, THRESHOLD, PATIENCE = 0.2, 0.01, 5

    def __init__(self, config: OptimConfig) -> None:
        super().__init__(config, lambda e: self.factor)
        self.factor, self.best, self.bad_epochs = 1.0, math.inf, 0.0

    def end_epoch(self, metric: float) -> None:
        if metric < self.best * (1 - self.THRESHOLD):
            self.best, self.bad_epochs = metric, 0.0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.PATIENCE:
            self.factor, self.bad_epochs = self.factor * self.FACTOR, 0.0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "bad_epochs": self.bad_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.factor, self.best, self.bad_epochs = state["factor"], state["best"], state["bad_epochs"]


def make_schedule(config: OptimConfig, policy: Factor | None = None) -> Schedule:
    """Return the schedule of ``config``, or one that follows ``policy``."""
    if policy is None and config.lr_policy == "plateau":
        return PlateauSchedule(config)
    return Schedule(config, policy)
