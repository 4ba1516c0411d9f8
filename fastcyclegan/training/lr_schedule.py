"""Compute the learning rate of each epoch.

Epochs are numbered from 1, and f(e) is the factor after e steps of a schedule. A schedule that steps at the
end of each epoch trains epoch n with f(n - 1); one that steps at the start, with f(n). The linear rule is the
official one: 1 - max(0, e + 1 - n_epochs) / (n_epochs_decay + 1). Every rule except plateau depends only on
the epoch number, so a resumed run needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastcyclegan.config import OptimConfig

Factor = Callable[[int], float]


def _rule(config: OptimConfig) -> Factor:
    total = max(1, config.last_epoch)
    rules: dict[str, Factor] = {
        "linear": lambda e: 1.0 - max(0, e + 1 - config.n_epochs) / (config.n_epochs_decay + 1),
        "step": lambda e: 0.1 ** (e // config.lr_decay_iters),
        "cosine": lambda e: 0.5 * (1 + math.cos(math.pi * min(e, total) / total)),
        "constant": lambda e: 1.0,
    }
    return rules[config.lr_policy]


class Schedule:
    """The learning rate of each epoch.

    ``policy``, if given, replaces the configured policy. It is a function from the number of steps that the
    schedule has taken (from 0) to a factor.
    """

    def __init__(self, config: OptimConfig, policy: Factor | None = None) -> None:
        self.base, self.steps_ahead = config.lr, {"end": -1, "start": 0}[config.lr_phase]
        self.rule = _rule(config) if policy is None else policy

    def lr(self, epoch: int) -> float:
        """Return the learning rate for epoch ``epoch`` (from 1)."""
        return self.base * max(0.0, self.rule(epoch + self.steps_ahead))

    def end_epoch(self, metric: float) -> None:
        """Record the mean generator loss of a finished epoch. Only the plateau policy uses it."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore a state from ``state_dict``."""


class PlateauSchedule(Schedule):
    """Divides the rate by 5 after the metric has stalled for more than 5 epochs.

    The metric has stalled in an epoch unless it is more than 1 % below the best value so far. This is the
    rule of torch's ReduceLROnPlateau. The rate changes only after the metric of an epoch is known, so
    ``lr_phase`` makes no difference here.
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
    """Return the schedule that ``config`` describes, or one that follows ``policy``."""
    if policy is None and config.lr_policy == "plateau":
        return PlateauSchedule(config)
    return Schedule(config, policy)
