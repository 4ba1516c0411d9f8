"""The losses of several pictures in one go: what ``reference.gan_loss`` and ``l1_loss`` give one by one, in a
few launches for all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _stacked(xs: Sequence[Tensor]) -> Tensor | None:
    """Return k tensors [N, ...] as one [k, N, ...], in fp32 at least; None where their shapes differ."""
    if any(x.shape != xs[0].shape for x in xs[1:]):
        return None
    together = torch.cat(list(xs))  # not stack: which would leave channels_last
    return (together.float() if together.dtype in (torch.bfloat16, torch.float16) else together).unflatten(
        0, (len(xs), -1)
    )


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
    """Return weights [k] times the mean distance of each of k pictures [N, C, H, W] from its target, [k]."""
    stacked, wanted = _stacked(results), _stacked(targets)
    if stacked is None or wanted is None:
        return torch.stack([F.l1_loss(x, y) for x, y in zip(results, targets, strict=True)]) * weights
    return (stacked - wanted).abs().mean(tuple(range(1, stacked.dim()))) * weights.to(stacked)
