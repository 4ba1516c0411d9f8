"""Batches from loaders of the caller's own: tensors, paired or in two domains, with what their samples
decide.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.data.batch import Batch
from fastcyclegan.data.image_file import ImageRequirements
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError


def _image_of(item: Any, side: str) -> Any:
    """Return one domain's images of what its loader gave: a tensor, the first of a tuple (a label may
    follow), or the entry ``side``.
    """
    if isinstance(item, Mapping):
        return item.get(side)
    if isinstance(item, (tuple, list)) and item:
        return item[0]
    return item


def _pair_of(item: Any) -> tuple[Any, Any]:
    """Return the images of A and B of what one loader gave: {"A": ..., "B": ...} or a pair."""
    if isinstance(item, Mapping):
        return item.get("A"), item.get("B")
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(
        f'a loader by itself must give {{"A": ..., "B": ...}} or pairs of tensors, got {type(item).__name__};'
        " or give two loaders"
    )


def _length(loader: Iterable[Any], given: int | None) -> int:
    if given is not None:
        return given
    count = 0
    # len() of a DataLoader of an iterable dataset raises TypeError.
    with contextlib.suppress(TypeError):
        if isinstance(loader, Sized):
            count = len(loader)
    if not count:
        raise UserError("a loader without a length, or an empty one: give iterations_per_epoch")
    return count


class TensorLoader:
    """Batches of ``A`` and ``B``, two loaders (the shorter begins anew where it ends), or of ``A`` alone,
    which gives both domains.

    Loaders give float tensors [N, C, H, W] in [-1, 1], or uint8 ones, in the caller's order: nothing is
    cropped or mirrored. Of batches of A and B that differ in N the surplus is left out. ``plan`` decides for
    the replay pools, by the seed and the place alone. Raises UserError for what cannot be trained on.
    """

    def __init__(
        self,
        A: Iterable[Any],
        B: Iterable[Any] | None,
        required: ImageRequirements,
        device: torch.device,
        seed: int,
        iterations_per_epoch: int | None = None,
    ) -> None:
        self.required, self.device = required, device
        self.B: Iterable[Any] | None = None
        batches = _length(A, iterations_per_epoch)
        if B is not None:
            batches = max(batches, _length(B, iterations_per_epoch))
        first, self.A = _looked_into(A)
        if B is None:
            pair = _pair_of(first)
        else:
            other, self.B = _looked_into(B)
            pair = _image_of(first, "A"), _image_of(other, "B")
        self.first = self._read(pair, checked=True)
        self.batch_size = self.first[0].shape[0]
        count = batches * self.batch_size
        self.plan = Plan(seed, count, count, self.batch_size, serial=True, flip=False)

    def _pairs(self) -> Iterator[tuple[Any, Any]]:
        """Yield the images of both domains for ever."""
        if self.B is None:
            for item in _endless(self.A):
                yield _pair_of(item)
            return
        for item_A, item_B in zip(_endless(self.A), _endless(self.B), strict=False):
            yield _image_of(item_A, "A"), _image_of(item_B, "B")

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of the iterations [start, stop), each epoch from the beginning of the loaders."""
        per_epoch, iteration = self.plan.iterations_per_epoch, start
        while iteration < stop:
            end = min(stop, (iteration // per_epoch + 1) * per_epoch)
            for pair in itertools.islice(self._pairs(), end - iteration):
                yield self._batch(iteration, *self._read(pair))
                iteration += 1
            if iteration < end:
                raise UserError(
                    f"a loader ended after {iteration - start} batches and gives no more: it must be one that"
                    " begins anew"
                )

    def _batch(self, iteration: int, a: Tensor, b: Tensor) -> Batch:
        per_epoch = self.plan.iterations_per_epoch
        passed, place = divmod(iteration, per_epoch)
        # Of images beyond the first batch's number each has a number of its own too.
        samples = [self.plan.sample(passed + 1, place + n * per_epoch) for n in range(a.shape[0])]
        no_paths = [""] * len(samples)
        return Batch(a, b, no_paths, list(no_paths), samples)

    def _read(self, pair: tuple[Any, Any], checked: bool = False) -> tuple[Tensor, Tensor]:
        images_A, images_B = pair
        a = self._images(images_A, "A", checked)
        b = self._images(images_B, "B", checked)
        count = min(a.shape[0], b.shape[0])
        return a[:count], b[:count]

    def _images(self, images: Any, side: str, checked: bool) -> Tensor:
        """Return ``images`` of domain ``side`` as the engine takes them."""
        self._check_shape(images, side)
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.float().div_(127.5).sub_(1.0)
        elif not images.is_floating_point():
            raise UserError(
                f"images of {side} must be floating point in [-1, 1] or uint8, got {images.dtype}"
            )
        elif checked and images.abs().amax() > 1.001:
            low, high = images.amin().item(), images.amax().item()
            raise UserError(f"images of {side} must be in [-1, 1], got values from {low:g} to {high:g}")
        return images.to(torch.float32).contiguous(memory_format=torch.channels_last)

    def _check_shape(self, images: Any, side: str) -> None:
        required = self.required
        channels = required.channels["AB".index(side)]
        wanted = f"images of {side} must be tensors [N, {channels}, H, W]"
        if not isinstance(images, Tensor):
            raise UserError(f"{wanted}, got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != channels or not images.shape[0]:
            raise UserError(f"{wanted}, got shape {list(images.shape)}")
        height, width = images.shape[2:]
        for length in (height, width):
            if length % required.size_multiple or length < required.least_side:
                raise UserError(
                    f"images of {side} are {width}x{height}: the networks take sides that are multiples of"
                    f" {required.size_multiple}, from {required.least_side} on"
                )


def _looked_into(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the first thing that ``loader`` gives, and ``loader`` with it still to be given."""
    items = iter(loader)
    try:
        first = next(items)
    except StopIteration:
        raise UserError("a loader gave no batches") from None
    if items is loader:
        return first, itertools.chain([first], items)
    return first, loader


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield what ``loader`` gives, again and again; ends where it gives nothing."""
    while True:
        item = None
        for item in loader:
            yield item
        if item is None:
            return
