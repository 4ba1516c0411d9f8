"""Running averages of weights, kept beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """Running averages of the weights of networks: after each step, average + (1 - decay) (weight - average);
    it begins at the weights.

    Buffers (batch norm's statistics) are copied. Source: Yazici et al., "The Unusual Effectiveness of
    Averaging in GAN Training", 2019.
    """

    def __init__(self, nets: Mapping[str, nn.Module], decay: float) -> None:
        self.nets, self.decay = nets, decay
        self.weights = {
            name: {key: value.clone() for key, value in net.state_dict().items()}
            for name, net in nets.items()
        }

    def update(self) -> None:
        averaged, copied = self._pairs()
        if averaged:
            torch._foreach_lerp_(
                [mine for mine, _ in averaged], [theirs for _, theirs in averaged], 1 - self.decay
            )
        for mine, theirs in copied:
            mine.copy_(theirs)

    def restart(self) -> None:
        """Begin again at the weights."""
        for pairs in self._pairs():
            for mine, theirs in pairs:
                mine.copy_(theirs)

    def _pairs(self) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
        """Return (average, weight) of all parameters and of all buffers."""
        averaged: list[tuple[Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        for name, net in self.nets.items():
            trained = {key for key, _ in net.named_parameters()}
            for key, value in net.state_dict().items():
                (averaged if key in trained else copied).append((self.weights[name][key], value))
        return averaged, copied

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the averages, in place."""
        for name, weights in self.weights.items():
            for key, value in weights.items():
                value.copy_(state[name][key])
