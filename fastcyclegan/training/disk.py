"""Estimate how much disk space a run needs, to report it at its start, beside what is free."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.errors import disk_of
from fastcyclegan.recipes.recipe import Recipe, RecipeError, Shape
from fastcyclegan.training.event_image import most_bytes, most_images
from fastcyclegan.training.run import Run
from fastcyclegan.training.run_report import EVENTS, SAMPLE_ROWS, SAMPLES

# torch.save adds 370 to 490 bytes per tensor (measured with networks of 6 to 48 tensors). A state has the
# configuration and the state of the random number generators as well.
_PER_TENSOR, _PER_FILE, _PER_STATE = 512, 1024, 16 * 1024
# The widest label of a column in a sample grid, and the margins around the images, in pixels.
_LABEL_WIDTH, _LABEL_HEIGHT, _MARGIN = 48, 18, 4
# A record of stats.jsonl and its event take 532 bytes with 8 losses (measured).
_PER_LINE, _PER_LOSS = 200, 56
# The start of the page and the curves, and a grid's entry on the page.
_PER_PAGE, _PER_ENTRY = 128 * 1024, 150


@dataclass(frozen=True)
class DiskNeed:
    """The bytes that a run needs in all: for its state, its weights, its sample grids and its logs.

    Each is an upper bound, apart from what depends on the sizes of the images or on the time. If there is
    such a part, it is not included, and ``complete`` is false.
    """

    state: int
    weights: int
    samples: int
    logs: int
    complete: bool

    @property
    def total(self) -> int:
        return self.state + self.weights + self.samples + self.logs


def disk_needed(run: Run) -> DiskNeed:
    """Return what the files of ``run`` need until it is complete, without the built-in dataset.

    The state counts three times: the newest, the previous one, and the one that is being written.
    """
    options, shapes = run.config.run, _shapes(run)
    grid = (0, 0)
    if shapes is not None:
        grid = _grid_size(run, _shown(run, shapes))
    copies, counted = _copies(run)
    return DiskNeed(
        state=3 * state_bytes(run, shapes),
        weights=copies * weights_bytes(run),
        samples=options.keep_samples * grid[0] * grid[1] * 3,
        logs=_log_bytes(run, grid),
        complete=shapes is not None and counted,
    )


def _saved(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() + _PER_TENSOR for t in tensors)


def weights_bytes(run: Run) -> int:
    """Return the bytes of one set of weights, including running averages if the run has them."""
    nets, total = run.engine.nets, 0
    averaged = run.engine.recipe.averaged if run.config.optim.ema > 0 else ()
    for name in (*nets, *averaged):
        total += _saved(nets[name].state_dict().values()) + _PER_FILE
    return total


def state_bytes(run: Run, shapes: Mapping[str, Shape] | None) -> int:
    """Return the bytes of a training state: weights, Adam's moments and what the recipe carries.

    ``shapes`` are those of the images of each domain. If they are None, what the recipe carries is not
    included.
    """
    total = weights_bytes(run) + _PER_STATE
    for net in run.engine.nets.values():
        parameters = list(net.parameters())
        # Adam keeps two moments and a counter for each parameter.
        total += 2 * _saved(parameters) + _saved(torch.zeros((), dtype=torch.float32) for _ in parameters)
    if shapes is not None:
        total += run.engine.recipe.state_bytes(shapes)
    return total


def _shapes(run: Run) -> dict[str, Shape] | None:
    """Return the shape [C, H, W] of the images of each domain, or None if images differ in size."""
    if isinstance(run.loader, TensorLoader):
        first = run.loader.first.items()
        return {side: (image.shape[1], image.shape[2], image.shape[3]) for side, image in first}
    shapes = {}
    for side, source in run.loader.sources.items():
        if source.size is None:
            return None
        shapes[side] = (source.fit.channels, source.size[1], source.size[0])
    return shapes


def _shown(run: Run, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shape [C, H, W] of the largest images of each domain in sample grids.

    ``shapes`` are those of the training images. Held-out ones can be larger if they are not cropped.
    """
    images = run.images
    if images is None or isinstance(run.loader, TensorLoader):
        return dict(shapes)
    held_out, largest = {"A": images.test_A, "B": images.test_B}, {}
    for side, source in run.loader.sources.items():
        width, height = source.largest_sides(held_out[side])
        largest[side] = (shapes[side][0], height, width)
    return largest


def _grid_size(run: Run, shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Return the largest width and height of a sample grid, in pixels.

    A PNG needs at most three bytes per pixel, if the images are noise.
    """
    pixel = torch.zeros(1, 1, 1, 1, dtype=torch.float32)
    columns = _columns(run.engine.recipe, dict.fromkeys(shapes, pixel))
    height, width = (max(sides) for sides in list(zip(*shapes.values(), strict=True))[1:])
    width = max(width, _LABEL_WIDTH)
    return columns * (width + _MARGIN) + _MARGIN, _LABEL_HEIGHT + SAMPLE_ROWS * (height + _MARGIN) + _MARGIN


def _columns(recipe: Recipe, images: dict[str, Tensor]) -> int:
    """Return the number of images in a row of a sample grid. Raises RecipeError if there can be none."""

    def untranslated(name: str, image: Tensor) -> Tensor:
        if name not in recipe.networks:
            raise RecipeError(
                f"the recipe {recipe.name}: samples calls {name}, which is not one of its networks"
            )
        return image

    row = recipe.samples(untranslated, images)
    if not isinstance(row, dict) or not row or not all(isinstance(image, Tensor) for image in row.values()):
        raise RecipeError(f"the recipe {recipe.name}: samples must return images [1, C, H, W] by name")
    return len(row)


def _copies(run: Run) -> tuple[int, bool]:
    """Return the largest number of sets of weights at any time, and whether it includes all of them.

    The copies of ``--save_by_iter`` are not included if their number depends on the time.
    """
    options, per_epoch = run.config.run, run.plan.iterations_per_epoch
    copies, counted = 1 if run.evaluation is None else 3, True
    if options.save_epoch_freq:
        every = options.save_epoch_freq * per_epoch
        copies += _at_most(run.last // every - run.first // every, options.keep_epochs)
    if options.save_by_iter and options.save_latest_freq is None:
        counted = False
    elif options.save_by_iter:
        copies += _at_most(_times(run, options.save_latest_freq), options.keep_epochs)
    return copies, counted


def _at_most(count: int, keep: int | None) -> int:
    """Return ``count``, but at most ``keep`` and one more, as an old copy is removed after a new one."""
    if keep is None:
        return count
    return min(count, keep + 1)


def _times(run: Run, images: int | None) -> int:
    """Return how often something is done every ``images`` images, at most once per iteration."""
    iterations = run.last - run.first
    if images is None:
        return iterations
    return min(iterations, iterations * run.batch // images)


def _log_bytes(run: Run, grid: tuple[int, int]) -> int:
    options = run.config.run
    line = _PER_LINE + _PER_LOSS * len(run.engine.recipe.loss_names)
    lines = line * (_times(run, options.print_freq) + 1)
    images = min(most_images(run.last), _times(run, options.display_freq) + 1)
    page = _PER_PAGE + _PER_ENTRY * options.keep_samples
    return page + lines + images * most_bytes(*grid)


# --- In words -----------------------------------------------------------------------------------------------


def size(count: int) -> str:
    """Return ``count`` bytes in GiB or, if that is less than one, in MiB."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    if count >= 10 * 2**20:
        return f"{math.ceil(count / 2**20):,} MiB"
    return f"{math.ceil(10 * count / 2**20) / 10:.1f} MiB"


def _bound(need: DiskNeed) -> str:
    if need.complete:
        return f"up to {size(need.total)}"
    return f"at least {size(need.total)}"


def describe_disk(run: Run) -> str:
    """Return the row of the start's table: what a run with a folder needs, its parts, and what is free."""
    assert run.folder is not None
    need = disk_needed(run)
    parts = [f"{size(need.state)} for the state", f"{size(need.weights)} for weights"]
    if need.samples:
        parts.append(f"{size(need.samples)} for samples")
    parts.append(f"{size(need.logs)} for logs")
    text = f"{_bound(need)}: {', '.join(parts)}"
    disk = disk_of(run.folder)
    if disk is not None:
        text += f"; {size(shutil.disk_usage(disk).free)} free on {disk}"
    return text


def disk_warning(run: Run) -> str | None:
    """Return a warning if the disk of the run's folder may become full, or None.

    Files that the run has written before, if it is resumed, need no more space.
    """
    if run.folder is None:
        return None
    disk = disk_of(run.folder)
    if disk is None:
        return None
    need, free = disk_needed(run), shutil.disk_usage(disk).free
    present = sum(file.stat().st_size for file in _files(run.folder))
    if need.total - present <= free:
        return None
    there = ""
    if present:
        there = f", of which {size(present)} exist"
    return (
        f"the disk may become full: the run needs {_bound(need)}{there}, but {size(free)} are free on {disk};"
        " --save_epoch_freq, --keep_epochs and --keep_samples can reduce it"
    )


def _files(folder: Path) -> list[Path]:
    found = [*folder.glob("*"), *(folder / SAMPLES).glob("*"), *(folder / EVENTS).glob("*")]
    return [file for file in found if file.is_file() and not file.name.startswith(".")]
