"""Translate images of any size with a trained generator."""

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

GRID_NAME = "before_after.png"
GRID_ROWS = 8
# Pixels that a batch may hold together (a 9-block generator needs about 1.5 KB a pixel): large images go
# one by one.
BATCH_PIXELS = 2**20
# Below this many images --loader auto takes Pillow: loading DALI takes longer than reading them.
MANY = 64


@dataclass(frozen=True)
class TranslateConfig:
    """Translate an image, or a folder of them, with a trained generator."""

    #: A run's folder, or one generator's weights (such as latest_net_G_A.pth).
    weights: Path
    #: An image, or a folder of images (and the folders in it).
    input: Path
    #: Folder for the translations: the same names, as PNG.
    output: Path
    #: With a run's folder: which way, by the training folders. Default: the way that the run was trained
    #: in (--direction there).
    direction: Direction | None = None
    #: With a run's folder: which weights (latest, 5, iter_1000 ...).
    epoch: str = "latest"
    #: In a file that holds several generators: which (scripts/inspect_checkpoint.py shows them).
    key: str | None = None
    #: With a run's folder: take the running average of the weights, which training with --ema keeps.
    ema: bool = False
    #: Resize every image to this side squared first, as the official test does. Default: keep its size.
    resize: int | None = None
    #: At most this many images of equal size at once; fewer where they are large.
    batch_size: int = 8
    #: Also write before_after.png, a grid of the first images and their translations.
    grid: bool = False
    #: Leave out images that cannot be read, and list them.
    skip_bad_images: bool = False
    #: What reads images: dali (on a GPU where there is one), or folder (Pillow). auto takes dali where it
    #: is installed and works.
    loader: Literal["auto", "dali", "folder"] = "auto"
    #: Threads that read and write images. Default: one a core, at most 16.
    num_threads: int | None = None
    #: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.
    device: str = "auto"
    #: auto: bf16 on a GPU that has it, else fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: What computes the network.
    impl: Literal["auto", "triton", "reference"] = "auto"

    def __post_init__(self) -> None:
        # The same checks.
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
    """Return what is to be read and written. Two images that differ in their suffix alone keep it
    (a.jpg.png, a.tif.png).
    """
    if not config.input.exists():
        raise UserError(f"{config.input}: no such file or folder")
    if config.output.exists() and not config.output.is_dir():
        raise UserError(f"{config.output}: a file, not a folder to write to")
    root, sources = config.input.parent, [config.input]
    if config.input.is_dir():
        root, sources = config.input, list_images(config.input)
    output = config.output.resolve()
    if output != root.resolve():
        # Translations inside the input folder are not translated again.
        sources = [source for source in sources if not source.resolve().is_relative_to(output)]
    if not sources:
        raise UserError(f"{config.input}: no images in it")
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
    """Yield batches of images that are equal in size once padded. Few images are held at a time, however
    many there are.
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
    """Saves images in threads, a few at a time; what goes wrong there is raised at the next image, or at
    the end.
    """

    def __init__(self, threads: int) -> None:
        self.pool, self.most = ThreadPoolExecutor(threads), 2 * threads
        self.waiting: deque[Future[None]] = deque()

    def save(self, pixels: NDArray[np.uint8], target: Path) -> None:
        self.waiting.append(self.pool.submit(_save, pixels, target))
        while len(self.waiting) > self.most:
            self.waiting.popleft().result()

    def close(self) -> None:
        try:
            while self.waiting:
                self.waiting.popleft().result()
        finally:
            self.pool.shutdown(cancel_futures=True)


def translate_folder(config: TranslateConfig, console: Console) -> int:
    """Translate what ``config`` names and return the number of images written. Raises UserError for what
    the user can put right.
    """
    translator, how = _load(config, console)
    jobs = plan_outputs(config)
    threads = default_threads() if config.num_threads is None else config.num_threads
    few = config.loader == "auto" and len(jobs) < MANY
    choice = choose("folder" if few else config.loader, translator.device, threads)
    reader = make_reader(choice, _fit(config, translator), translator.device, console.log)
    console.log(f"translating {_images(len(jobs))} {how}, read by {choice.kind}")
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
    """Return what translates, and what is to be printed of it."""
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
    """Print the images that were left out. Raises UserError where none may be."""
    if bad and not config.skip_bad_images:
        which = str(bad[0])
        if len(bad) > 1:
            which += f" (and {len(bad) - 1} more)"
        raise UserError(
            f"bad image {which}; {written} images were written; --skip_bad_images leaves such images out"
        )
    for reason in bad:
        console.log(f"left out {reason}")
