"""Compute the losses of several tensors at once, with a few launches for all of them.

The results equal those of ``reference.gan_loss`` and ``l1_loss`` called once per tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.recipes.recipe import Compile, uncompiled


def widened(x: Tensor) -> Tensor:
    """Return ``x`` in fp32 if it has 16 bits, in which no loss should be computed, otherwise as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _stacked(xs: Sequence[Tensor]) -> Tensor | None:
    """Stack k tensors [N, ...] into one [k, N, ...], or return None if their shapes differ.

    16-bit tensors are converted to fp32.
    """
    if any(x.shape != xs[0].shape for x in xs[1:]):
        return None
    together = torch.cat(list(xs))  # stack would not keep channels_last
    return widened(together).unflatten(0, (len(xs), -1))


def gan_losses(judged: Sequence[Tensor], real: Tensor, mode: str) -> Tensor:
    """Return the adversarial losses [k] of k tensors of logits [N, 1, H, W].

    ``real`` [k] is 1 for logits that should be classified as real, and 0 for the others. ``mode`` is lsgan
    (Mao et al. 2017), vanilla (cross entropy) or wgangp (without its penalty), as in
    ``reference.gan_loss``.
    """
    logits = _stacked(judged)
    if logits is None:
        return torch.cat([gan_losses([x], real[n : n + 1], mode) for n, x in enumerate(judged)])
    target = real.view(-1, *(1 for _ in judged[0].shape)).to(logits)
    dims = tuple(range(1, logits.dim()))
    if mode == "lsgan":
        return (logits - target).square().mean(dims)
    if mode == "vanilla":
        # -log sigmoid(x) = softplus(-x) for real; softplus(x) = softplus(-x) + x for fake.
        return (F.softplus(-logits) + (1 - target) * logits).mean(dims)
    return logits.mean(dims) * (1 - 2 * real).to(logits)


def l1_losses(results: Sequence[Tensor], targets: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the weighted mean L1 distances [k] of k tensors [N, C, H, W] from their targets.

    Each distance is multiplied by its element of ``weights`` [k].
    """
    stacked, stacked_targets = _stacked(results), _stacked(targets)
    if stacked is None or stacked_targets is None:
        return torch.stack([F.l1_loss(x, y) for x, y in zip(results, targets, strict=True)]) * weights
    return (stacked - stacked_targets).abs().mean(tuple(range(1, stacked.dim()))) * weights.to(stacked)


class BatchedLosses:
    """The adversarial and L1 losses of this module, with targets and weights given as Python numbers.

    ``compile_loss`` compiles the arithmetic of the losses. The numbers are copied to the device only once,
    because a CUDA graph cannot wait for the host.
    """

    def __init__(self, mode: str, compile_loss: Compile = uncompiled) -> None:
        self.mode = mode
        self._gan_losses, self._l1_losses = compile_loss(gan_losses), compile_loss(l1_losses)
        self._constants: dict[Hashable, Tensor] = {}

    def adversarial(self, judged: Sequence[Tensor], real: Sequence[bool]) -> Tensor:
        """Return the adversarial losses [k] of k tensors of logits [N, 1, H, W].

        ``real`` contains True for each tensor that should be classified as real, and False for the others.
        """
        return self._gan_losses(judged, self._constant(real, judged[0]), self.mode)

    def distances(
        self, results: Sequence[Tensor], targets: Sequence[Tensor], weights: Sequence[float]
    ) -> Tensor:
        """Return the weighted mean L1 distances [k] of k tensors [N, C, H, W] from their targets."""
        return self._l1_losses(results, targets, self._constant(weights, results[0]))

    def _constant(self, values: Sequence[float], like: Tensor) -> Tensor:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = (tuple(values), like.device, dtype)
        if key not in self._constants:
            self._constants[key] = torch.tensor(values, dtype=dtype, device=like.device)
        return self._constants[key]
