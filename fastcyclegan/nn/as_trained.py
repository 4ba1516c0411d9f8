"""Translate with a network as it runs in training, but with each image by itself.

The official test of pix2pix keeps its network in training mode, and calls it with one image at a time: batch
norm uses the statistics of that image, and dropout is on. ``as_trained`` returns a network that computes
this for batches of any size. Batch norm becomes an instance norm with the same weights, which is what it is
for a single image, so the kernels can compute it. The masks of dropout depend only on the key of an image.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fastcyclegan.reference import InstanceNorm2d

_BITS = 32
_MASK = 2**_BITS - 1


def mask_keys(seed: int, names: Sequence[str]) -> Tensor:
    """Return the keys [N] int64 of the dropout masks of N images with these ``names``."""
    keys = []
    for name in names:
        text = f"{seed}:{name}".encode("utf-8", "surrogateescape")
        keys.append(int.from_bytes(hashlib.blake2b(text, digest_size=_BITS // 8).digest(), "little"))
    return torch.tensor(keys, dtype=torch.int64)


_current = threading.local()


@contextlib.contextmanager
def masks_from(keys: Tensor | None) -> Iterator[None]:
    """Let the dropout of ``as_trained`` networks draw its masks from ``keys`` [N], in this thread.

    Without keys, all images get the same mask.
    """
    outer = getattr(_current, "keys", None)
    _current.keys = keys
    try:
        yield
    finally:
        _current.keys = outer


def _mixed(x: Tensor) -> Tensor:
    """Return integers in [0, 2**32) that look independent of those in x [...], which are in [0, 2**32)."""
    for _ in range(2):
        x = (((x >> 16) ^ x) * 0x45D9F3B) & _MASK  # the product has less than 60 bits
    return (x >> 16) ^ x


class KeyedDropout(nn.Module):
    """Dropout that is always on, with a mask that depends only on the key of an image and on ``number``.

    The mask is computed from integers, so it is the same on every device, in every layout and precision, in
    every batch, and at every replay of a CUDA graph with the same keys. Different layers need different
    numbers.
    """

    def __init__(self, p: float, number: int) -> None:
        super().__init__()
        self.p, self.number = p, number

    def forward(self, x: Tensor) -> Tensor:
        return self._masked(x, torch.arange(x[0].numel(), device=x.device).view(x.shape[1:]))

    def on_window(
        self, x: Tensor, window: tuple[tuple[int, int], tuple[int, int]], size: tuple[int, int]
    ) -> Tensor:
        """Return what ``forward`` returns in ``window`` of a map of ``size`` (H, W). x is that window.

        ``window`` is the first row, that after the last one, and the same for the columns.
        """
        (H, W), device = size, x.device
        channels = torch.arange(x.shape[1], device=device).view(-1, 1, 1) * (H * W)
        rows = torch.arange(*window[0], device=device).view(-1, 1) * W
        return self._masked(x, channels + rows + torch.arange(*window[1], device=device))

    def _masked(self, x: Tensor, index: Tensor) -> Tensor:
        """Apply the mask to x. ``index`` [C, H, W] numbers the pixels of all channels of the whole map."""
        if self.p >= 1:
            return torch.zeros_like(x)
        keys: Tensor | None = getattr(_current, "keys", None)
        if keys is None:
            keys = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        cells = _mixed((index + self.number * 0x9E3779B1) & _MASK)
        drawn = _mixed(cells ^ keys.view(-1, *(1 for _ in x.shape[1:])))
        return x * (drawn >= round(self.p * 2**_BITS)).to(x.dtype).mul(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}, number={self.number}"


def as_trained(net: nn.Module) -> nn.Module:
    """Return a network that computes, for each image by itself, what ``net`` computes in training mode.

    It has the weights of ``net``, also later on, but does not keep ``net`` alive or change it: not its mode,
    and not its running statistics. Batch norm and dropout are replaced; other layers run in evaluation mode.
    It must be made anew when the modules of ``net`` are replaced, and moved to another device with it.
    """
    made = _copied(net, {}, [0])
    made.translates_as_trained = False  # type: ignore[assignment]
    return made.eval()


def without_dropout(net: nn.Module) -> None:
    """Turn off the dropout of ``net``, also in training mode."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def describe_mode(net: nn.Module) -> str:
    """Return how ``net`` differs from a network in evaluation mode, for a line about it, or ""."""
    parts = []
    if any(hasattr(module, "of_image") for module in net.modules()):
        parts.append("batch statistics of each image")
    if has_masks(net):
        parts.append("dropout")
    return f", with {' and '.join(parts)} (--eval without)" if parts else ""


def has_masks(net: nn.Module) -> bool:
    """Return whether ``net``, which ``as_trained`` made, needs the keys of its images."""
    return any(isinstance(module, KeyedDropout) and module.p > 0 for module in net.modules())


def _copied(module: nn.Module, known: dict[nn.Module, nn.Module], dropouts: list[int]) -> nn.Module:
    """Copy ``module`` and its children, but not their weights. ``dropouts`` counts those so far."""
    if module in known:
        return known[module]
    made = _replaced(module, dropouts)
    if made is None:
        made = copy.copy(module)
        made._modules = {}
        for name, child in module._modules.items():
            made._modules[name] = None if child is None else _copied(child, known, dropouts)
    known[module] = made
    return made


def _replaced(module: nn.Module, dropouts: list[int]) -> nn.Module | None:
    """Return what takes the place of ``module``, or None if it can stay."""
    if isinstance(module, nn.BatchNorm2d):
        norm = InstanceNorm2d(module.num_features, module.eps, affine=False)
        norm.affine = module.affine
        norm.weight, norm.bias = module.weight, module.bias
        norm.of_image = True  # type: ignore[assignment]
        return norm
    if type(module) is nn.Dropout:
        dropouts[0] += 1
        return KeyedDropout(module.p, dropouts[0])
    return None
