"""Freeze networks for some iterations: their weights, and everything else that training changes in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class _Before:
    """What a network was like before it was frozen."""

    trained: list[nn.Parameter]
    in_training: list[nn.Module]


class FrozenNetworks:
    """Freezes any of ``nets``, and unfreezes them again.

    A frozen network gets no gradients and is in eval mode, so the running statistics of batch norms are used
    and stay the same, and nothing is dropped out. What the caller froze stays frozen.
    """

    def __init__(self, nets: Mapping[str, nn.Module]) -> None:
        self._nets = nets
        self._before: dict[str, _Before] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the frozen networks."""
        return tuple(self._before)

    def set(self, names: Collection[str]) -> None:
        """Freeze the networks ``names``, and unfreeze all others that this object froze."""
        for name in [name for name in self._before if name not in names]:
            self._unfreeze(name)
        for name in names:
            if name not in self._before:
                self._freeze(name)

    def _freeze(self, name: str) -> None:
        net = self._nets[name]
        before = _Before(
            [p for p in net.parameters() if p.requires_grad],
            [module for module in net.modules() if module.training],
        )
        self._before[name] = before
        for p in before.trained:
            p.requires_grad_(False)
        net.eval()

    def _unfreeze(self, name: str) -> None:
        before = self._before.pop(name)
        for p in before.trained:
            p.requires_grad_(True)
        for module in before.in_training:
            module.training = True
