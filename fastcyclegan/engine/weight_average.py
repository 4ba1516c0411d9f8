"""Keep running averages of weights during training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def _cloned(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in weights.items()}


class WeightAverage:
    """Running averages of the weights of networks.

    The averages are initialised with the current weights. Each update changes an average to
    average + (1 - decay) * (weight - average). Buffers (batch norm's statistics) are copied. Source: Yazici
    et al., "The Unusual Effectiveness of Averaging in GAN Training", 2019.
    """

    def __init__(self, nets: Mapping[str, nn.Module], decay: float) -> None:
        self.nets, self.decay = nets, decay
        self.weights = {name: _cloned(net.state_dict()) for name, net in nets.items()}

    def update(self) -> None:
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for name, net in self.nets.items():
            parameters = {key for key, _ in net.named_parameters()}
            for key, value in net.state_dict().items():
                average = self.weights[name][key]
                if key in parameters:
                    averages.append(average)
                    weights.append(value)
                else:
                    average.copy_(value)
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the networks have the averages as their weights in the body, and their own again after it."""
        current = {name: _cloned(net.state_dict()) for name, net in self.nets.items()}
        try:
            self._copy(self.weights)
            yield
        finally:
            self._copy(current)

    def _copy(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy ``weights`` to the networks."""
        for name, net in self.nets.items():
            for key, value in net.state_dict().items():
                value.copy_(weights[name][key])

    def restart(self) -> None:
        """Reset the averages to the current weights."""
        for name, net in self.nets.items():
            for key, value in net.state_dict().items():
                self.weights[name][key].copy_(value)

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the averages from ``state``, in place."""
        for name, weights in self.weights.items():
            for key, value in weights.items():
                value.copy_(state[name][key])
