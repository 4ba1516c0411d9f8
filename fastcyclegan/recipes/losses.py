"""The losses of several images in one go: what ``reference.gan_loss`` and ``l1_loss`` give one by one, in a
few launches for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.recipes.recipe import Compile, uncompiled


def _stacked(xs: Sequence[Tensor]) -> Tensor | None:
    """Return k tensors [N, ...] as one [k, N, ...], in fp32 at least; None where their shapes differ."""
    if any(x.shape != xs[0].shape for x in xs[1:]):
        return None
    together = torch.cat(list(xs))  # not stack: which would leave channels_last
    if together.dtype in (torch.bfloat16, torch.float16):
        together = together.float()
    return together.unflatten(0, (len(xs), -1))


def gan_losses(judged: Sequence[Tensor], real: Tensor, mode: str) -> Tensor:
    """Return the adversarial loss of each of k logits [N, 1, H, W], [k]; ``real`` [k] holds 1 for those that
    are to be judged real, else 0.

    ``mode``: lsgan (Mao et al. 2017), vanilla (cross entropy) or wgangp (without its penalty), as
    ``reference.gan_loss`` has them.
    """
    logits = _stacked(judged)
    if logits is None:
        return torch.cat([gan_losses([x], real[n : n + 1], mode) for n, x in enumerate(judged)])
    target = real.view(-1, *(1 for _ in judged[0].shape)).to(logits)
    dims = tuple(range(1, logits.dim()))
    if mode == "lsgan":
        return (logits - target).square().mean(dims)
    if mode == "vanilla":
        # -log sigmoid(x) = softplus(-x) for real ones; softplus(x) = softplus(-x) + x for the others.
        return (F.softplus(-logits) + (1 - target) * logits).mean(dims)
    return logits.mean(dims) * (1 - 2 * real).to(logits)


def l1_losses(results: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return weights [k] times the mean distance of each of k images [N, C, H, W] from its target, [k]."""
    stacked, wanted = _stacked(results), _stacked(targets)
    if stacked is None or wanted is None:
        return torch.stack([F.l1_loss(x, y) for x, y in zip(results, targets, strict=True)]) * weights
    return (stacked - wanted).abs().mean(tuple(range(1, stacked.dim()))) * weights.to(stacked)


class BatchedLosses:
    """Both losses by Python numbers. ``compile_loss`` makes one function of the arithmetic of each.

    The numbers lie on the device of the images, put there once: a CUDA graph cannot wait for the host.
    """

    def __init__(self, mode: str, compile_loss: Compile = uncompiled) -> None:
        self.mode = mode
        self._gan_losses, self._l1_losses = compile_loss(gan_losses), compile_loss(l1_losses)
        self._constants: dict[Hashable, Tensor] = {}

    def adversarial(self, judged: Sequence[Tensor], real: Sequence[bool]) -> Tensor:
        """Return the adversarial loss of each of k logits [N, 1, H, W], [k]; ``real``: which are to be judged
        real.
        """
        return self._gan_losses(judged, self._constant(real, judged[0]), self.mode)

    def distances(
        self, results: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """Return the weighted mean distance of each of k images [N, C, H, W] from its target, [k]."""
        return self._l1_losses(results, targets, self._constant(weights, results[0]))

    def _constant(self, values: Sequence[float], like: Tensor) -> Tensor:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (tuple(values), like.device, dtype)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=like.device)
        return self._constants[key]
