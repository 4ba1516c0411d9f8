"""Translate an image file or a folder of images of any size with a trained generator."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan.config import Direction, RunConfig
from fastcyclegan.console import Console
from fastcyclegan.data.choose_loader import choose, default_threads, make_reader
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Row
from fastcyclegan.data.pixels import draw_grid, save_image, to_image
from fastcyclegan.errors import UserError, is_out_of_memory
from fastcyclegan.inference.batches import (
    FittingTranslator,
    Given,
    NoRoomError,
    Translated,
    gathered,
    translated,
)
from fastcyclegan.inference.load_translator import GeneratorChoice, load_translator
from fastcyclegan.inference.memory import budget_of
from fastcyclegan.inference.outputs import Output, Plan, plan_outputs
from fastcyclegan.inference.precision_check import check
from fastcyclegan.inference.tiling import tiles_of
from fastcyclegan.inference.translator import Translator
from fastcyclegan.inference.writer import Writer
from fastcyclegan.nn.torch_defaults import usual_modes
from fastcyclegan.settings.tiles import Tile, TileMode, TileSettings, TileStorage
from fastcyclegan.tensor_files import remove_stale_partials

GRID_ROWS = 8
# Side in pixels to which larger images are reduced in the grid, so that the grid stays small.
GRID_SIDE = 1024
# Number of images that --check translates in both precisions.
CHECKED = 8
# Below this many images, --loader auto uses Pillow, because loading DALI takes longer than reading them.
MANY = 64


@dataclass(frozen=True)
class TranslateConfig:
    """Translate an image or a folder of images with a trained generator."""

    #: Folder of a run, or a file with a generator's weights (such as latest_net_G_A.pth).
    weights: Path
    #: Image, or folder of images (including its subfolders).
    input: Path
    #: Folder for the translations, which are PNG files with the names of the images: a.png for a.jpg, but
    #: a.jpg.png and a.tif.png if there are both a.jpg and a.tif. For a single image, this can also be the
    #: file itself, with the suffix .png. Folders that do not exist are created.
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
    #: Maximum number of images of equal size to translate at once; fewer if they are large or memory is
    #: short.
    batch_size: int = 8
    #: Also write before_after.png, a grid of the first 8 images and their translations, beside the
    #: translations. Images larger than 1024 pixels are reduced in it.
    grid: bool = False
    #: Skip and list images that cannot be read or do not fit into memory, and exit with code 0. By default,
    #: an image that cannot be read ends the program, and if one does not fit, the others are translated and
    #: the exit code is 1. The exit code is always 1 if the network's output is not a number for an image.
    skip_bad_images: bool = False
    #: Use the running statistics of batch norm, and no dropout. By default, networks of pix2pix translate as
    #: in training: with the batch statistics of each image by itself, and with dropout.
    eval: bool = False
    #: Translate without dropout with networks of pix2pix, but with the batch statistics of each image.
    no_dropout: bool = False
    #: Seed of the dropout masks of networks of pix2pix, which also depend on the name of each image. Default:
    #: that of the run, or 0.
    seed: int | None = None
    #: Read images of any size, as far as the memory allows. By default, images above 179 megapixels, those
    #: that take more than 1 GiB to decode, and JPEG files of more than 100 scans are bad images. A small
    #: file can claim any amount of memory and time, so only use this for files that you trust.
    allow_decompression_bombs: bool = False
    #: Image loader: dali (NVIDIA DALI, on the GPU if there is one) or folder (Pillow). auto uses dali for 64
    #: images or more, if it is installed and works.
    loader: Literal["auto", "dali", "folder"] = "auto"
    #: Number of threads that read and write images. Default: one per core, at most 16.
    num_threads: int | None = None
    #: Device to use: cpu, cuda, cuda:N or mps; auto uses cuda if available, then mps, then cpu.
    device: str = "auto"
    #: Precision of the computation. auto: bf16 where it is faster (a GPU that supports it, a processor with
    #: AMX, or one with AVX512_BF16 with --compile or fastcyclegan's kernels) and, on test images, 99.9 % of
    #: the 8-bit values are within 1/255 of fp32; otherwise fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: Implementation of the network. triton: fastcyclegan's kernels for NVIDIA GPUs; cpp: those for
    #: processors; reference: PyTorch's operators; auto: the kernels where they are faster.
    impl: Literal["auto", "cpp", "triton", "reference"] = "auto"
    #: Compile the network with torch.compile, for each of the first 8 sizes of images. This takes up to a
    #: minute each, so it is for many images of few sizes. Networks that the kernels for NVIDIA GPUs compute,
    #: and networks with dropout, are not compiled.
    compile: bool = False
    #: Afterwards, translate the first 8 images in both precisions, and print how well bf16 agrees with fp32
    #: and how long an image takes. With --precision bf16, the exit code is 1 if less than 99.9 % of the 8-bit
    #: values are within 1/255 of fp32.
    check: bool = False
    #: Side in pixels of the tiles by which larger images are translated, in much less memory. auto: only
    #: images that do not fit into memory as a whole are, by tiles of 512 pixels (1024 on a GPU) or fewer;
    #: None: never. A side that is not on the grid of the network is rounded up.
    tile: Tile = TileSettings.tile
    #: exact: the result is that of the whole image, because statistics are gathered over all tiles, in
    #: several passes. independent: the network sees one tile at a time, so statistics, and with them colours,
    #: are those of each tile; for comparison, and for networks that exact tiles refuse.
    tile_mode: TileMode = TileSettings.tile_mode
    #: Number of pixels by which independent tiles overlap, and over which they fade into each other.
    overlap: int = TileSettings.overlap
    #: Where exact tiles keep what later passes read: in memory (of the device, or else of the host), or on
    #: disk, in a file without a name in the output folder, which disappears with the process.
    tile_storage: TileStorage = TileSettings.tile_storage

    def __post_init__(self) -> None:
        TileSettings.of(self)  # raises UserError for what is impossible
        # Reuse the checks of the training configuration.
        RunConfig(epoch=self.epoch, continue_train=True, device=self.device, precision=self.precision)
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 2**63):
            raise UserError(f"seed must be an integer of at least 0, below 2**63, got {self.seed!r}")
        numbers = {"batch_size": self.batch_size, "resize": self.resize, "num_threads": self.num_threads}
        for name, value in numbers.items():
            is_missing = value is None and name != "batch_size"
            if not is_missing and (type(value) is not int or value < 1):
                raise UserError(f"{name} must be an integer of at least 1, got {value!r}")


class _Failures:
    """Prints the images that are not translated, as soon as that is known, and keeps what was printed."""

    def __init__(self, config: TranslateConfig, console: Console) -> None:
        self.skip, self.console = config.skip_bad_images, console
        self.texts: list[str] = []
        self.no_numbers: list[str] = []
        self.fatal: BadImageError | None = None

    def add(self, text: str) -> None:
        """Print an image that fails, but does not end the program."""
        self.texts.append(text)
        self.console.log(f"skipped {text}" if self.skip else f"not translated: {text}")

    def add_no_numbers(self, text: str) -> None:
        """Print an image that the network gives no numbers for. It is not the image that is bad."""
        self.no_numbers.append(text)
        self.console.log(f"not translated: {text}")

    @property
    def returned(self) -> list[str]:
        """The images that failed, without those that ``skip_bad_images`` allows to fail."""
        return self.no_numbers if self.skip else [*self.texts, *self.no_numbers]

    def bad(self, error: BadImageError) -> bool:
        """Print or keep the error of an image that cannot be read, and return whether to read the others."""
        if self.skip or error.is_lack_of_memory:
            self.add(str(error))
            return True
        self.fatal = error
        return False


class _Grid:
    """The first images and their translations, reduced if they are large, to draw as a grid.

    ``failed`` is called if the grid does not fit into memory, which does not affect the translations.
    """

    def __init__(self, plan: Plan, failed: Callable[[str], None]) -> None:
        self.file, self.failed = plan.grid, failed
        shown = [] if plan.grid is None else plan.outputs[:GRID_ROWS]
        self.rows: dict[Path, list[NDArray[np.uint8]]] = {output.source: [] for output in shown}

    def add(self, output: Output, before: Tensor, after: NDArray[np.uint8]) -> None:
        """Keep an image for the grid, if it is one of the first."""
        if output.source in self.rows:
            try:
                self.rows[output.source] = [_reduced(before.cpu().numpy()), _reduced(after)]
            except MemoryError:
                self._give_up()

    def save(self) -> None:
        """Write the grid, if there is one."""
        rows = [row for row in self.rows.values() if row]
        if self.file is not None and rows:
            columns = {"input": [row[0] for row in rows], "translation": [row[1] for row in rows]}
            try:
                save_image(draw_grid(columns), self.file)
            except MemoryError:
                self._give_up()

    def _give_up(self) -> None:
        self.rows.clear()
        self.failed(f"{self.file}: cannot be drawn: out of memory")


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``pixels`` [H, W, C] with sides of at most GRID_SIDE."""
    height, width, channels = pixels.shape
    scale = GRID_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = to_image(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(image).reshape(size[1], size[0], channels)


class _Check:
    """The first images, to translate in both precisions in the end, if ``config`` asks for that."""

    def __init__(self, config: TranslateConfig, plan: Plan, translator: Translator) -> None:
        self.translator, self.total = translator, len(plan.outputs)
        self.tiles, self.folder = TileSettings.of(config), _folder(config, plan)
        self.is_strict = config.precision == "bf16"
        self.wanted = {output.source for output in plan.outputs[:CHECKED]} if config.check else set[Path]()
        self.images: list[Tensor] = []

    def add(self, output: Output, before: Tensor, after: NDArray[np.uint8]) -> None:
        """Keep an image [H, W, C], if it is one of the first."""
        if output.source in self.wanted:
            self.images.append(before)

    def _translated(self, translator: Translator, image: Tensor) -> NDArray[np.uint8] | None:
        """Return the translation, by tiles if that is needed or asked for."""
        tiles = tiles_of(translator, self.tiles, self.folder)
        (translation,) = translated(translator, tiles, [(Given("0", "the image"), image)])
        result: NDArray[np.uint8] | None = translation
        return result

    def run(self, console: Console) -> list[str]:
        """Print the results. Returns them also if bf16 was asked for and does not agree with fp32."""
        if not self.images:
            return []
        translators = {}
        for precision in ("fp32", "bf16"):
            translators[precision] = self.translator.in_precision(precision)
        try:
            found = check(translators, self.images, self._translated)
        except (MemoryError, RuntimeError, NoRoomError) as error:
            if not isinstance(error, NoRoomError) and not is_out_of_memory(error):
                raise
            text = "check: not enough memory to translate the images in both precisions"
        else:
            text = found.describe(self.total)
            for line in found.layers:
                console.log(line)
            if found.agreement.is_enough or not self.is_strict:
                console.log(text)
                return []
        console.log(text)
        return [text]


@usual_modes()
def translate_folder(config: TranslateConfig, console: Console) -> list[str]:
    """Translate the images given by ``config``.

    Returns a description of each image that could not be translated for lack of memory (but not if
    ``skip_bad_images`` is set), or because the network gives no numbers for it, and of a check that failed.
    They are printed as well.
    Raises UserError for mistakes that the user can fix, and OSError if a translation cannot be written; what
    has been written until then is printed.
    """
    plan = plan_outputs(config.input, config.output, config.grid)
    if plan.found is not None:
        plan.found.require_readable(config.skip_bad_images)
    translator, summary = load_translator(GeneratorChoice.of(config), console)
    progress = Progress(console, len(plan.outputs))
    settings = TileSettings.of(config)
    tiles = tiles_of(translator, settings, _folder(config, plan), console.log, progress.of_tiles)
    for folder in {output.target.parent for output in plan.outputs}:
        remove_stale_partials(folder)
    threads = default_threads() if config.num_threads is None else config.num_threads
    is_small = config.loader == "auto" and len(plan.outputs) < MANY
    choice = choose("folder" if is_small else config.loader, translator.device, threads)
    reader = make_reader(choice, _fit(config, translator), translator.device, console.log)
    console.log(f"translating {_images(len(plan.outputs))} {summary}, using the {choice.kind} loader")
    passed_over = "" if plan.found is None else plan.found.passed_over
    for line in filter(None, (passed_over, plan.numbered)):
        console.log(line)
    started = time.monotonic()
    failures = _Failures(config, console)
    reading = reader.read(Job(output.source, tag=output) for output in plan.outputs)
    writer = Writer(threads, failures.add)
    to_call = failures.add, writer.drain, failures.add_no_numbers
    grid, checked = _Grid(plan, failures.add), _Check(config, plan, translator)
    when = "before the program ended"
    try:
        with console, closing(reading), writer:
            fitting = FittingTranslator(translator, budget_of(translator), *to_call, tiles)
            _write_all(_translated(reading, fitting, config, failures), (grid, checked), writer, progress)
        grid.save()
        when = f"in {time.monotonic() - started:.1f} s"
    finally:
        count = _images(len(plan.outputs))
        if writer.written < len(plan.outputs):
            count = f"{writer.written} of {count}"
        console.log(f"wrote {count} to {config.output} {when}")
    if failures.fatal is not None:
        raise UserError(f"bad image {failures.fatal}; --skip_bad_images skips such images")
    return failures.returned + checked.run(console)


def _translated(
    rows: Iterable[tuple[Job, Row]], fitting: FittingTranslator, config: TranslateConfig, failures: _Failures
) -> Iterator[Translated]:
    """Yield the images that can be translated with their translations, in any order."""
    for batch in gathered(rows, fitting.translator, config.batch_size, failures.bad):
        yield from fitting(batch)


def _folder(config: TranslateConfig, plan: Plan) -> Path:
    """Return the folder of the output."""
    is_file = any(output.target == config.output for output in plan.outputs)
    return config.output.parent if is_file else config.output


class Progress:
    """Shows from time to time how many of ``total`` images are done, or how far the tiles of an image are."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.begin()

    def begin(self) -> None:
        """Count the time from now on."""
        self.started = self.shown = self.began = time.monotonic()

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self.shown <= (0.1 if self.console.is_terminal else 10):
            return False
        self.shown = now
        return True

    def of_images(self, number: int) -> None:
        """Take note that ``number`` images are done."""
        if self._is_due():
            rate = number / (self.shown - self.started)
            self.console.progress(number, self.total, f"{number}/{self.total} images, {rate:.2f} images/s")

    def of_tiles(self, name: str, share: float, text: str) -> None:
        """Take note that a share of the work on the tiles of an image is done. It begins with 0."""
        if share == 0:
            self.began = time.monotonic()
        elif self._is_due():
            seconds = round((self.shown - self.began) / share * (1 - share))
            left = datetime.timedelta(seconds=seconds)
            line = f"{left} left, {text}, {name}"
            if not self.console.is_terminal:  # where a bar shows it
                line = f"{int(100 * share)} %, {line}"
            self.console.progress(int(1000 * share), 1000, line)


def _write_all(
    images: Iterable[Translated], kept: tuple[_Grid, _Check], writer: Writer, progress: Progress
) -> None:
    progress.begin()
    for number, (output, before, after) in enumerate(images, start=1):
        writer.save(after, output)
        for one in kept:
            one.add(output, before, after)
        progress.of_images(number)


def _fit(config: TranslateConfig, translator: Translator) -> Fit:
    fit = Fit(channels=translator.channels, any_size=config.allow_decompression_bombs)
    if config.resize is None:
        return fit
    return replace(fit, preprocess="square", load_size=config.resize)


def _images(count: int) -> str:
    if count == 1:
        return "1 image"
    return f"{count} images"
