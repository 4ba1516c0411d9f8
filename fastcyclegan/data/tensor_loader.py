"""Make batches from the caller's own loaders of tensors: one loader of pairs, or one per domain.

The replay pools, the gradient penalty and the discriminators' augmentation get their random numbers from a
plan, as with image files.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.data.background import Stopping, never
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Values up to here count as rounding errors of 1.
_LIMIT = 1.001


def _image_of(item: Any, side: str) -> Any:
    """Return the images of domain ``side`` from one item of its loader.

    The item is a tensor, a tuple that begins with one (a label may follow), or a mapping with the entry
    ``side``.
    """
    if isinstance(item, Mapping):
        return item.get(side)
    if isinstance(item, (tuple, list)) and item:
        return item[0]
    return item


def _pair_of(item: Any) -> tuple[Any, Any]:
    """Return the images of A and B from one item of a loader: {"A": ..., "B": ...} or a pair."""
    if isinstance(item, Mapping):
        return item.get("A"), item.get("B")
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return item[0], item[1]
    raise UserError(
        f'a single loader must yield {{"A": ..., "B": ...}} or pairs of tensors, got {type(item).__name__};'
        " otherwise pass one loader per domain"
    )


def _length(loader: Iterable[Any], iterations_per_epoch: int | None) -> int:
    if iterations_per_epoch is not None:
        if type(iterations_per_epoch) is not int or iterations_per_epoch < 1:
            raise UserError(f"iterations_per_epoch must be a positive integer, got {iterations_per_epoch!r}")
        return iterations_per_epoch
    count = 0
    # len() of a DataLoader of an iterable dataset raises TypeError.
    with contextlib.suppress(TypeError):
        if isinstance(loader, Sized):
            count = len(loader)
    if not count:
        raise UserError("a loader is empty or has no length; pass iterations_per_epoch")
    return count


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn the error of a torch DataLoader of the caller, one of whose processes died, into a UserError.

    torch raises that error at an arbitrary point in the code of the main process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise UserError(
                f"a process of a loader died ({str(error).splitlines()[0]}); fewer workers need less memory"
                " and less shared memory, and num_workers=0 needs no processes"
            ) from None
        raise


class TensorLoader:
    """A loader that makes batches from loaders ``A`` and ``B``, or from ``A`` only if it yields both domains.

    The shorter of two loaders is started again when it ends. Loaders yield float tensors [N, C, H, W] in
    [-1, 1], or uint8 ones, in the order that the caller chose: nothing is cropped or flipped. If the batches
    of A and B differ in N, the surplus is dropped. ``plan`` provides the random numbers of the replay pools
    and, if ``augment`` is set, of the augmentation. They depend only on the seed and the position. If
    ``same_size`` is set, A and B of an iteration must have the same height and width.

    Every batch is checked before it is trained on. Raises UserError, with the loader and the number of its
    batch, for one that cannot be trained on. A tensor on the CPU is checked there. One on a GPU is checked on
    the current stream, which is that of the uploads, so the check does not wait for an iteration that runs.

    ``stopping`` exists as in other loaders, but a wait inside the caller's code cannot ask it.
    """

    def __init__(
        self,
        A: Iterable[Any],
        B: Iterable[Any] | None,
        required: ImageRequirements,
        device: torch.device,
        seed: int,
        iterations_per_epoch: int | None = None,
        augment: bool = False,
        same_size: bool = False,
    ) -> None:
        self.required, self.device, self.same_size = required, device, same_size
        self.stopping: Stopping = never
        self.B: Iterable[Any] | None = None
        batches = _length(A, iterations_per_epoch)
        if B is not None:
            batches = max(batches, _length(B, iterations_per_epoch))
        first, self.A = _peek(A)
        if B is None:
            pair = _pair_of(first)
        else:
            other, self.B = _peek(B)
            pair = _image_of(first, "A"), _image_of(other, "B")
        first_A, first_B = self._read(pair, (1, 1))
        self.first = first_A.clone(), first_B.clone()  # a loader may use its memory again
        self.batch_size = self.first[0].shape[0]
        count = batches * self.batch_size
        self.plan = Plan(seed, count, count, self.batch_size, serial=True, flip=False, augment=augment)

    def _pairs(self) -> Iterator[tuple[tuple[Any, Any], tuple[int, int]]]:
        """Yield pairs of the images of A and B, and the numbers of their batches, endlessly."""
        if self.B is None:
            for number, item in _endless(self.A):
                yield _pair_of(item), (number, number)
            return
        both = zip(_endless(self.A), _endless(self.B), strict=False)
        for (number_A, item_A), (number_B, item_B) in both:
            yield (_image_of(item_A, "A"), _image_of(item_B, "B")), (number_A, number_B)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of the iterations [start, stop).

        Every epoch starts the loaders from the beginning.
        """
        per_epoch, iteration = self.plan.iterations_per_epoch, start
        while iteration < stop:
            end = min(stop, (iteration // per_epoch + 1) * per_epoch)
            for pair, numbers in itertools.islice(self._pairs(), end - iteration):
                yield self._batch(iteration, *self._read(pair, numbers))
                iteration += 1
            if iteration < end:
                raise UserError(
                    f"a loader ended after {iteration - start} batches and yields no more; pass one that can"
                    " be iterated more than once"
                )

    def _batch(self, iteration: int, a: Tensor, b: Tensor) -> Batch:
        per_epoch = self.plan.iterations_per_epoch
        epoch, position = divmod(iteration, per_epoch)
        # Every image gets its own sample number, even in a batch that is larger than the first one.
        samples = [self.plan.sample(epoch + 1, position + n * per_epoch) for n in range(a.shape[0])]
        no_paths = [""] * len(samples)
        return Batch(a, b, no_paths, list(no_paths), samples)

    def _read(self, pair: tuple[Any, Any], numbers: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the images of A and B of one iteration. They come from the batches of these numbers."""
        a, b = (self._images(*one) for one in zip(pair, "AB", numbers, strict=True))
        if self.same_size and a.shape[2:] != b.shape[2:]:
            (height_A, width_A), (height_B, width_B) = a.shape[2:], b.shape[2:]
            raise UserError(
                f"batch {numbers[0]}: wgangp mixes real and fake images, so A and B must have the same size,"
                f" got {width_A}x{height_A} and {width_B}x{height_B}"
            )
        count = min(a.shape[0], b.shape[0])
        return a[:count], b[:count]

    def _images(self, images: Any, side: str, number: int) -> Tensor:
        """Check ``images`` of domain ``side`` and convert them to the form that the engine takes."""
        try:
            self._check_shape(images, side)
            images = images.detach()
            _check_values(images, side)
        except UserError as error:
            loader = "the loader" if self.B is None else f"loader {side}"
            raise UserError(f"batch {number} of {loader}: {error}") from None
        if images.is_inference():
            images = images.clone()  # autograd could not save them for the backward pass
        images = images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8:
            images = images.to(torch.float32).div_(127.5).sub_(1.0)
        return images.to(torch.float32).contiguous(memory_format=torch.channels_last)

    def _check_shape(self, images: Any, side: str) -> None:
        required = self.required
        channels = required.channels["AB".index(side)]
        expected = f"images of domain {side} must be tensors [N, {channels}, H, W]"
        if not isinstance(images, Tensor):
            raise UserError(f"{expected}, got {type(images).__name__}")
        if images.is_nested or images.is_meta or images.layout != torch.strided:
            kind = "on the meta device" if images.is_meta else f"of layout {images.layout}"
            raise UserError(f"{expected}, got one {'that is nested' if images.is_nested else kind}")
        if images.dim() != 4 or images.shape[1] != channels or not images.shape[0]:
            raise UserError(f"{expected}, got shape {list(images.shape)}")
        height, width = images.shape[2:]
        for length in (height, width):
            if length % required.size_multiple or length < required.least_side:
                raise UserError(
                    f"images of domain {side} are {width}x{height}, but the networks need sides that are"
                    f" multiples of {required.size_multiple} and at least {required.least_side}"
                )


def _check_values(images: Tensor, side: str) -> None:
    """Raise UserError if ``images`` have another dtype, are not finite or exceed [-1, 1]."""
    if images.dtype == torch.uint8:
        return
    if images.dtype not in _FLOATS:
        raise UserError(
            f"images of domain {side} must be floating point in [-1, 1] or uint8, got {images.dtype}"
        )
    low, high = torch.stack(torch.aminmax(images)).tolist()
    if math.isnan(low) or math.isnan(high):
        raise UserError(f"images of domain {side} must be in [-1, 1], got NaN")
    if low < -_LIMIT or high > _LIMIT:
        raise UserError(f"images of domain {side} must be in [-1, 1], got values from {low:g} to {high:g}")


def _peek(loader: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Return the first item of ``loader``, and an iterable that still yields all of its items."""
    items = iter(loader)
    try:
        first = next(items)
    except StopIteration:
        raise UserError("a loader yielded no batches") from None
    if items is loader:
        return first, itertools.chain([first], items)
    return first, loader


def _endless(loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the items of ``loader`` over and over, each with its number from 1; stop if it yields none."""
    while True:
        number = 0
        for number, item in enumerate(loader, start=1):
            yield number, item
        if not number:
            return
