"""Translate an image file or a folder of images of any size with a trained generator."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastcyclegan.checkpoints.loading import find_weights, load_generator
from fastcyclegan.config import Direction, RunConfig
from fastcyclegan.console import Console
from fastcyclegan.data.choose_loader import choose, default_threads, make_reader
from fastcyclegan.data.image_file import BadImageError, Fit
from fastcyclegan.data.loader import Job, Row
from fastcyclegan.data.pixels import draw_grid, save_image, to_image
from fastcyclegan.data.scan import list_images
from fastcyclegan.engine import require_impl, resolve_device, resolve_precision
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translator import Translator
from fastcyclegan.tensor_files import remove_stale_partials

GRID_NAME = "before_after.png"
GRID_ROWS = 8
# Maximum number of pixels in a batch, so that large images are translated one by one. A 9-block generator
# needs about 1.5 KB per pixel.
BATCH_PIXELS = 2**20
# Below this many images, --loader auto uses Pillow, because loading DALI takes longer than reading them.
MANY = 64


@dataclass(frozen=True)
class TranslateConfig:
    """Translate an image or a folder of images with a trained generator."""

    #: Folder of a run, or a file with a generator's weights (such as latest_net_G_A.pth).
    weights: Path
    #: Image, or folder of images (including its subfolders).
    input: Path
    #: Folder for the translated images, which are saved as PNG files under the names of the originals.
    output: Path
    #: Whether to translate from training folder A to B or from B to A, if --weights is the folder of a run.
    #: Default: the direction that the run was trained with.
    direction: Direction | None = None
    #: Epoch of the weights to use (latest, 5, iter_1000, ...), if --weights is the folder of a run.
    epoch: str = "latest"
    #: Generator to use if a file contains several; scripts/inspect_checkpoint.py lists them.
    key: str | None = None
    #: Use the running averages of the weights, which are saved by runs trained with --ema.
    ema: bool = False
    #: Resize each image to a square of this side in pixels first, as the official test does. Default: keep
    #: its size.
    resize: int | None = None
    #: Maximum number of images of equal size to translate at once; fewer if they are large.
    batch_size: int = 8
    #: Also write before_after.png, a grid of the first images and their translations.
    grid: bool = False
    #: Skip and list images that cannot be read; by default such an image ends the program.
    skip_bad_images: bool = False
    #: Image loader: dali (NVIDIA DALI, on the GPU if there is one) or folder (Pillow). auto uses dali for 64
    #: images or more, if it is installed and works.
    loader: Literal["auto", "dali", "folder"] = "auto"
    #: Number of threads that read and write images. Default: one per core, at most 16.
    num_threads: int | None = None
    #: Device to use: cpu, cuda, cuda:N or mps; auto uses cuda if available, then mps, then cpu.
    device: str = "auto"
    #: Precision of the computation. auto: bf16 on a GPU that supports it, otherwise fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: Implementation of the network. triton: fastcyclegan's kernels; reference: PyTorch's operators; auto:
    #: the kernels on an NVIDIA GPU, otherwise PyTorch's operators.
    impl: Literal["auto", "triton", "reference"] = "auto"

    def __post_init__(self) -> None:
        # Reuse the checks of the training configuration.
        RunConfig(epoch=self.epoch, continue_train=True, device=self.device, precision=self.precision)
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.resize is not None and self.resize < 1:
            raise UserError(f"resize must be at least 1, got {self.resize}")
        if self.num_threads is not None and self.num_threads < 1:
            raise UserError(f"num_threads must be at least 1, got {self.num_threads}")


@dataclass(frozen=True)
class _Job:
    source: Path
    target: Path


def plan_outputs(config: TranslateConfig) -> list[_Job]:
    """Return, for each input image, the file to read and the file to write.

    If the names of images differ only in the suffix, the outputs keep the suffix (a.jpg.png, a.tif.png).
    Raises UserError if the input is missing or has no images, if the output is not a folder, and if an output
    would overwrite an input.
    """
    if not config.input.exists():
        raise UserError(f"{config.input}: no such file or folder")
    if config.output.exists() and not config.output.is_dir():
        raise UserError(f"{config.output}: not a folder, so no images can be written to it")
    root, sources = config.input.parent, [config.input]
    if config.input.is_dir():
        root, sources = config.input, list_images(config.input)
    output = config.output.resolve()
    if output != root.resolve():
        # Translations inside the input folder are not translated again.
        sources = [source for source in sources if not source.resolve().is_relative_to(output)]
    if not sources:
        raise UserError(f"{config.input}: no images to translate")
    names = [source.relative_to(root) for source in sources]
    taken = Counter(name.with_suffix(".png") for name in names)
    if config.grid:
        taken[Path(GRID_NAME)] += 1
    inputs = {source.resolve() for source in sources}
    jobs = []
    for source, name in zip(sources, names, strict=True):
        target = name.with_suffix(".png")
        if taken[target] > 1:
            target = name.with_name(f"{name.name}.png")
        target = config.output / target
        if target.resolve() in inputs:
            raise UserError(f"{target} is one of the input images: choose another --output")
        jobs.append(_Job(source, target))
    return jobs


def _batches(
    rows: Iterable[tuple[Job, Row]], translator: Translator, batch_size: int, bad: list[BadImageError]
) -> Iterator[list[tuple[_Job, Tensor]]]:
    """Yield batches of images whose sizes are equal after padding.

    Only a few images are in memory at a time, regardless of their total number.
    """
    buckets: dict[tuple[int, ...], list[tuple[_Job, Tensor]]] = {}
    for job, pixels in rows:
        if isinstance(pixels, BadImageError):
            bad.append(pixels)
            continue
        size = tuple(-(-side // translator.multiple) for side in pixels.shape[:2])
        bucket = buckets.setdefault(size, [])
        bucket.append((job.tag, pixels))
        room = max(1, BATCH_PIXELS // (pixels.shape[0] * pixels.shape[1]))
        if len(bucket) >= min(batch_size, room):
            yield buckets.pop(size)
        elif sum(map(len, buckets.values())) >= 4 * batch_size:
            yield buckets.pop(max(buckets, key=lambda key: len(buckets[key])))
    yield from buckets.values()


def _save(pixels: NDArray[np.uint8], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    save_image(to_image(pixels), target)


class _Writer:
    """Saves images in background threads, a few at a time.

    An error in a thread is raised when a later image is saved, or at the end.
    """

    def __init__(self, threads: int) -> None:
        self.pool, self.limit = ThreadPoolExecutor(threads), 2 * threads
        self.waiting: deque[Future[None]] = deque()

    def save(self, pixels: NDArray[np.uint8], target: Path) -> None:
        self.waiting.append(self.pool.submit(_save, pixels, target))
        while len(self.waiting) > self.limit:
            self.waiting.popleft().result()

    def close(self) -> None:
        try:
            while self.waiting:
                self.waiting.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)


def translate_folder(config: TranslateConfig, console: Console) -> int:
    """Translate the images given by ``config`` and return the number of images written.

    Raises UserError for mistakes that the user can fix.
    """
    translator, summary = _load(config, console)
    jobs = plan_outputs(config)
    for folder in {job.target.parent for job in jobs}:
        remove_stale_partials(folder)
    threads = default_threads() if config.num_threads is None else config.num_threads
    is_small = config.loader == "auto" and len(jobs) < MANY
    choice = choose("folder" if is_small else config.loader, translator.device, threads)
    reader = make_reader(choice, _fit(config, translator), translator.device, console.log)
    console.log(f"translating {_images(len(jobs))} {summary}, using the {choice.kind} loader")
    started = last_logged = time.monotonic()
    written = 0
    bad: list[BadImageError] = []
    rows: dict[Path, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    shown = {job.source for job in jobs[:GRID_ROWS]}
    reading = reader.read(Job(job.source, tag=job) for job in jobs)
    with console, closing(reading), closing(_Writer(threads)) as writer:
        for batch in _batches(reading, translator, config.batch_size, bad):
            if bad and not config.skip_bad_images:
                break
            translations = translator([pixels for _, pixels in batch])
            for (job, before), after in zip(batch, translations, strict=True):
                writer.save(after, job.target)
                written += 1
                if config.grid and job.source in shown:
                    rows[job.source] = before.cpu().numpy(), after
            if console.is_terminal or time.monotonic() - last_logged > 10:
                last_logged = time.monotonic()
                rate = written / (last_logged - started)
                console.progress(written, len(jobs), f"{written}/{len(jobs)} images, {rate:.2f} images/s")
    _report_bad(bad, written, config, console)
    if rows:
        in_order = [rows[source] for source in sorted(rows)]
        columns = {"input": [row[0] for row in in_order], "translation": [row[1] for row in in_order]}
        save_image(draw_grid(columns), config.output / GRID_NAME)
    seconds = time.monotonic() - started
    console.log(f"wrote {_images(written)} to {config.output} in {seconds:.1f} s")
    return written


def _load(config: TranslateConfig, console: Console) -> tuple[Translator, str]:
    """Load the generator that ``config`` selects, and return its translator and a summary to print."""
    device = resolve_device(RunConfig(device=config.device))
    precision = resolve_precision(config.precision, device, compiled=False)
    require_impl(config.impl, device)
    file = find_weights(config.weights, config.direction, config.epoch, config.ema)
    net = load_generator(file, impl=config.impl, key=config.key)
    translator = Translator(net, device, precision, console.log)
    return translator, f"with {file} on {device} in {precision}"


def _fit(config: TranslateConfig, translator: Translator) -> Fit:
    if config.resize is None:
        return Fit(channels=translator.channels)
    return Fit("square", config.resize, channels=translator.channels)


def _images(count: int) -> str:
    if count == 1:
        return "1 image"
    return f"{count} images"


def _report_bad(bad: list[BadImageError], written: int, config: TranslateConfig, console: Console) -> None:
    """Print the images that were skipped. Raises UserError for bad images unless --skip_bad_images is set."""
    if bad and not config.skip_bad_images:
        description = str(bad[0])
        if len(bad) > 1:
            description += f" (and {len(bad) - 1} more)"
        raise UserError(
            f"bad image {description}; {written} images were written; --skip_bad_images skips such images"
        )
    for reason in bad:
        console.log(f"skipped {reason}")
