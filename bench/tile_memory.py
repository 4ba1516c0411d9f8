"""Measure the memory and the time that exact tiles take by the size of the image, beside the estimate.

    python -m bench.tile_memory --sizes 2048,4096,8192 --tile 512 --netG resnet_9blocks

Each size is translated in a process of its own, in fp32, on an image with smooth shapes, by a generator with
random weights. The memory is the peak of the process above what it used before the translation, and in total;
on a GPU, it is the memory that torch reserves there. With ``--whole``, images are translated as a whole, too,
as far as that fits by the estimate of ``inference.memory``. Without ``--tile_storage disk``, the maps between
passes are kept in memory. A second table shows what a GPU would need: these are counts, not measurements.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.machine import DEVICE, PeakMemory, machine
from fastcyclegan.compat import define_G
from fastcyclegan.errors import UserError
from fastcyclegan.inference.memory import budget_of, bytes_of_forms
from fastcyclegan.inference.tiling import SIDES_ON_GPU, TiledTranslator
from fastcyclegan.inference.translator import Translator, padded_side
from fastcyclegan.settings.tiles import TileSettings, TileStorage
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.plan import plan

NETWORKS = ("resnet_9blocks", "resnet_6blocks", "unet_256", "unet_128")
# Bytes for a pixel of the image and of the result, which are kept as integers.
PIXEL = 6


@dataclass(frozen=True)
class Job:
    """The translation of an image of ``side`` x ``side`` pixels with the network ``netG`` and ``ngf``.

    ``tile`` is the side of a tile, or None for the whole image.
    """

    side: int
    tile: int | None
    netG: str
    ngf: int
    storage: TileStorage

    @property
    def name(self) -> str:
        return f"{self.side} x {self.side}"

    def translator(self) -> Translator:
        torch.manual_seed(0)
        net = define_G(3, 3, self.ngf, self.netG, norm="instance")
        return Translator(net.eval(), torch.device(DEVICE), "fp32")

    def image(self) -> Tensor:
        """Return the image as bytes [side, side, 3]."""
        torch.manual_seed(1)
        small = torch.rand(1, 3, 32, 32) * 255
        # Channel by channel, so that the image is never there as floats of all channels.
        image = torch.empty(self.side, self.side, 3, dtype=torch.uint8)
        for channel in range(3):
            large = F.interpolate(small[:, channel : channel + 1], size=image.shape[:2], mode="bilinear")
            image[:, :, channel] = large[0, 0].to(torch.uint8)
        return image


@dataclass(frozen=True)
class Measured:
    """The peak memory above that before, and in total, in bytes, or None if it cannot be measured.

    ``seconds`` is the time of the translation, and ``busy`` that of the processor, of all threads.
    """

    above: int | None
    total: int | None
    seconds: float
    busy: float


def measured(job: Job) -> Measured:
    """Translate once and return what it took. Raises UserError if there is not enough memory."""
    translator, image = job.translator(), job.image()
    tiled = None
    if job.tile is not None:
        tiled = TiledTranslator(translator, TileSettings(job.tile, tile_storage=job.storage), Path())
    memory = PeakMemory()
    with memory:
        start, busy = time.perf_counter(), time.process_time()
        result: Any = translator([image]) if tiled is None else tiled(image, "0", "the image")
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    del result
    total = None if memory.bytes is None or memory.before is None else memory.before + memory.bytes
    return Measured(memory.bytes, total, seconds, busy)


def in_own_process(job: Job) -> Measured:
    """Return ``measured(job)`` of a new process. Raises UserError if the system ends it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measured, job).result()
        except BrokenProcessPool:
            raise UserError("the process was killed; probably, memory has run out") from None


# --- The tables ---------------------------------------------------------------------------------------------

HEADING = ("image", "estimate", "peak above that before", "peak in total", "time", "processor time")
OF_THE_WHOLE = ("whole: peak above that before", "whole: processor time", "time of tiles / whole")
ON_A_GPU = ("image", "fp32: GPU", "fp32: maps on the host", "bf16: GPU, with the maps")


def measurements(jobs: Sequence[Job], whole: bool, run: Callable[[Job], Measured]) -> Iterator[Sequence[str]]:
    """Yield the heading and the rows of the first table. With ``whole``, they have those of whole images."""
    yield (*HEADING, *OF_THE_WHOLE) if whole else HEADING
    for job in jobs:
        tiles = run(job)
        cells = [job.name, gib(estimated(job)), gib(tiles.above), gib(tiles.total)]
        cells += [f"{tiles.seconds:.1f} s", f"{tiles.busy:.1f} s"]
        if whole:
            cells += of_the_whole(tiles, replace(job, tile=None), run)
        yield cells


def of_the_whole(tiles: Measured, job: Job, run: Callable[[Job], Measured]) -> list[str]:
    """Return the cells about the whole image, or dashes if it does not fit into memory."""
    budget = budget_of(job.translator())
    if budget is not None and budget.count(1, job.side, job.side) < 1:
        return ["does not fit", "-", "-"]
    found = run(job)
    # The processor's time does not depend on what else the machine does. On a GPU it means nothing.
    ratio = tiles.seconds / found.seconds if DEVICE == "cuda" else tiles.busy / found.busy
    return [gib(found.above), f"{found.busy:.1f} s", f"{ratio:.2f}"]


def estimated(job: Job) -> float:
    """Return the bytes that a translation by tiles should take in fp32, with the pixels of both images."""
    stored, temporary = counted(job, 4)
    kept = stored if job.storage == "memory" else 0
    forms = bytes_of_forms(job.translator().net) if DEVICE == "cpu" else 0
    return kept + temporary + forms + PIXEL * job.side**2


def counted(job: Job, size: int) -> tuple[int, int]:
    """Return the bytes of the stored maps, and those that a tile takes, if a number has ``size`` bytes."""
    assert job.tile is not None
    translator = job.translator()
    side = padded_side(job.side, translator.multiple)
    tile = TiledTranslator(translator, TileSettings(job.tile), Path()).sides[0]
    need = need_of(plan(translator.net, translator.channels, (side, side), tile))
    return need.stored * size, need.temporary * size


def counts(jobs: Sequence[Job]) -> Iterator[Sequence[str]]:
    """Yield the heading and the rows of the second table: bytes on a GPU by count, without the weights."""
    yield ON_A_GPU
    for job in jobs:
        on_gpu = replace(job, tile=SIDES_ON_GPU[0])
        stored, temporary = counted(on_gpu, 4)
        yield job.name, gib(temporary), gib(stored), gib(sum(counted(on_gpu, 2)))


def gib(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f} GiB"


def printed(rows: Iterator[Sequence[str]]) -> None:
    """Print a Markdown table, each row as soon as it is there."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(row)} |", flush=True)
        if not number:
            print("|" + "---|" * len(row))


# --- The command line ---------------------------------------------------------------------------------------


def _sides(text: str) -> list[int]:
    try:
        sides = [int(part) for part in text.split(",")]
    except ValueError:
        sides = [0]
    if min(sides) < 1:
        raise argparse.ArgumentTypeError(f"must be sides in pixels such as 2048,4096, got {text!r}")
    return sides


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed options."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--sizes",
        type=_sides,
        default=[2048],
        metavar="N,N",
        help="sides of the images in pixels (default: 2048)",
    )
    parser.add_argument("--tile", type=int, default=512, help="side of a tile (default: %(default)s)")
    parser.add_argument("--netG", choices=NETWORKS, default=NETWORKS[0], help="default: %(default)s")
    parser.add_argument("--ngf", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--whole", action="store_true", help="translate whole images, too, where they fit")
    parser.add_argument(
        "--tile_storage",
        choices=("memory", "disk"),
        default="memory",
        help="where the maps between passes are kept; disk: in the current folder (default: %(default)s)",
    )
    return parser, parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, run: Callable[[Job], Measured] = in_own_process) -> int:
    """Run the command line that the module docstring describes. ``run`` measures one translation."""
    parser, options = parse(arguments)
    jobs = [
        Job(side, options.tile, options.netG, options.ngf, options.tile_storage) for side in options.sizes
    ]
    about = machine()
    print(f"{options.netG} ngf {options.ngf}, fp32, tiles of {options.tile}, maps: {options.tile_storage}")
    print(f"{about['hardware']}, torch {about['torch']}\n")
    try:
        printed(measurements(jobs, options.whole, run))
        print(f"\nBy count, tiles of {SIDES_ON_GPU[0]} on a GPU:\n")
        printed(counts(jobs))
    except UserError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
