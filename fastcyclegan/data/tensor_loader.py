"""Make batches from the caller's own loaders of tensors: of pairs, one per domain, or of single images.

What a recipe decides at random gets its random numbers from a plan, as with image files.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
_ARE_PAIRS = "each image of A belongs to the image of B in the same place"


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


def _pair_of(item: Any) -> dict[str, Any]:
    """Return the images of A and B from one item of a loader: {"A": ..., "B": ...} or a pair."""
    if isinstance(item, Mapping):
        return {side: item.get(side) for side in "AB"}
    if isinstance(item, (tuple, list)) and len(item) >= 2:
        return {"A": item[0], "B": item[1]}
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

    If ``sides`` is ("A",), the batches only have images of domain A, and there is no loader ``B``. The
    shorter of two loaders is started again when it ends. Loaders yield float tensors [N, C, H, W] in
    [-1, 1], or uint8 ones, in the order that the caller chose: nothing is cropped or flipped. If the batches
    of A and B differ in N, the surplus is dropped. If ``paired`` is set, image n of A belongs to image n of
    B, so loaders of different lengths and batches of different N are errors instead. ``plan`` provides the
    random numbers, of which ``numbers`` per sample are the recipe's own. They depend only on the seed and the
    position. If ``same_size`` is set, A and B of an iteration must have the same height and width. ``first``
    contains the images of the first batch, by domain.

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
        *,
        numbers: int = 0,
        same_size: bool = False,
        paired: bool = False,
        sides: tuple[str, ...] = ("A", "B"),
    ) -> None:
        self.required, self.device, self.sides = required, device, sides
        self.same_size, self.paired = same_size, paired
        self.stopping: Stopping = never
        if B is not None and "B" not in sides:
            raise UserError("two loaders were given, but this run trains on single images: pass one loader")
        self.B: Iterable[Any] | None = None
        lengths = [_length(loader, iterations_per_epoch) for loader in (A, B) if loader is not None]
        if paired and min(lengths) < max(lengths):
            raise UserError(
                f"loader A has {lengths[0]} batches and loader B has {lengths[1]}, but {_ARE_PAIRS}: pass"
                " loaders of one length"
            )
        first, self.A = _peek(A)
        if B is None:
            images = self._images_in(first)
        else:
            other, self.B = _peek(B)
            images = {"A": _image_of(first, "A"), "B": _image_of(other, "B")}
        read = self._read(images, dict.fromkeys(sides, 1))
        self.first = {side: rows.clone() for side, rows in read.items()}  # a loader may use its memory again
        self.batch_size = self.first["A"].shape[0]
        count = max(lengths) * self.batch_size
        plan = Plan(seed, count, count, self.batch_size, serial=True, flip=False, numbers=numbers)
        self.plan = dataclasses.replace(plan, paired="B" not in sides)

    def _images_in(self, item: Any) -> dict[str, Any]:
        """Return the images of each domain from one item of a single loader."""
        if "B" in self.sides:
            return _pair_of(item)
        return {"A": _image_of(item, "A")}

    def _items(self) -> Iterator[tuple[dict[str, Any], dict[str, int]]]:
        """Yield the images of each domain, and the numbers of their batches, endlessly."""
        if self.B is None:
            for number, item in _endless(self.A):
                yield self._images_in(item), dict.fromkeys(self.sides, number)
            return
        both = zip(_endless(self.A), _endless(self.B), strict=False)
        for (number_A, item_A), (number_B, item_B) in both:
            if self.paired and number_A != number_B:
                raise UserError(
                    f"batch {number_A} of loader A meets batch {number_B} of loader B, because one of them"
                    f" ended earlier, but {_ARE_PAIRS}: pass loaders of one length"
                )
            images = {"A": _image_of(item_A, "A"), "B": _image_of(item_B, "B")}
            yield images, {"A": number_A, "B": number_B}

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Yield the batches of the iterations [start, stop).

        Every epoch starts the loaders from the beginning.
        """
        per_epoch, iteration = self.plan.iterations_per_epoch, start
        while iteration < stop:
            end = min(stop, (iteration // per_epoch + 1) * per_epoch)
            for images, numbers in itertools.islice(self._items(), end - iteration):
                yield self._batch(iteration, self._read(images, numbers))
                iteration += 1
            if iteration < end:
                raise UserError(
                    f"a loader ended after {iteration - start} batches and yields no more; pass one that can"
                    " be iterated more than once"
                )

    def _batch(self, iteration: int, images: dict[str, Tensor]) -> Batch:
        per_epoch = self.plan.iterations_per_epoch
        epoch, position = divmod(iteration, per_epoch)
        # Every image gets its own sample number, even in a batch that is larger than the first one.
        samples = [self.plan.sample(epoch + 1, position + n * per_epoch) for n in range(images["A"].shape[0])]
        return Batch(images, {side: [""] * len(samples) for side in images}, samples)

    def _read(self, images: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the images of one iteration, by domain. They come from the batches of these numbers."""
        read = {side: self._images(images[side], side, numbers[side]) for side in self.sides}
        if self.same_size and len({rows.shape[2:] for rows in read.values()}) > 1:
            (height_A, width_A), (height_B, width_B) = read["A"].shape[2:], read["B"].shape[2:]
            raise UserError(
                f"batch {numbers['A']}: images of A and B must have the same size, as for pairs and with"
                f" wgangp, got {width_A}x{height_A} and {width_B}x{height_B}"
            )
        counts = {side: rows.shape[0] for side, rows in read.items()}
        count = min(counts.values())
        if self.paired and max(counts.values()) > count:
            raise UserError(
                f"batch {numbers['A']}: there are {counts['A']} images of A and {counts['B']} of B, but"
                f" {_ARE_PAIRS}"
            )
        return {side: rows[:count] for side, rows in read.items()}

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
