"""Call the kernels, or PyTorch's operators, on a window of a map.

Both compute what they compute for the whole image in ``nn.chains``: a convolution with the tanh that follows
it, without the bias that a norm after it cancels, and a norm with its activation and a residual.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.dispatch import Impl, resolve_impl
from fastcyclegan.kernels.region_norm import normalise_region, region_moments
from fastcyclegan.nn.deferred import Deferred


@dataclass(frozen=True)
class Calls:
    """The implementation that computes a network: its ``impl``, which a device can resolve differently."""

    impl: str = "auto"

    def _resolved(self, x: Tensor) -> Impl:
        return resolve_impl("Chain", self.impl, x)

    def convolve(self, x: Tensor, conv: nn.Module, following: nn.Module | None) -> Tensor:
        """Return ``conv`` of x. ``following`` is the layer after it; if it is a tanh, it is applied, too."""
        impl = self._resolved(x)
        deferred = Deferred(x, [], impl, required=self.impl == impl, bordered=True)
        deferred.convolve((conv,), None if following is None else (following,), recompute=True)
        if following is not None and isinstance(following, nn.Tanh) and deferred.covered is None:
            result: Tensor = following(deferred.x)
            return result
        return deferred.x

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the biased variance [C] of x [1, C, H, W]."""
        return region_moments(x, self._resolved(x))

    def normalise(
        self, x: Tensor, norm: Norm, moments: tuple[Tensor, Tensor], residual: Tensor | None
    ) -> Tensor:
        """Return the norm of x with the given mean and variance [C]."""
        return normalise_region(x, norm, *moments, self._resolved(x), residual)


def unpadded(conv: Any, **sizes: Sequence[int]) -> Any:
    """Return a layer with the weights of ``conv`` but without padding, or with the given ``sizes``."""
    made = copy.copy(conv)
    made.padding, made.padding_mode = (0, 0), "zeros"
    for name, value in sizes.items():
        setattr(made, name, tuple(value))
    return made
