"""Read images with DALI in blocks, and yield them resized, cropped and flipped in the plan's order.

The division of work follows measurements. On a GPU, DALI does everything. On a CPU, DALI decodes (1.6 times
as fast as Pillow, and to the same pixels) and torch resizes. For 8-bit images, torch's antialiased cubic
filter is the same as Pillow's and, like it, rounds between the two passes. The results are therefore within 2
levels of Pillow's if the passes have the same order, and they take a seventh of the time. DALI's own filter
does not round between the passes and repeats the pixels at the border. Its results are up to 11 levels off,
and it is hardly faster than Pillow's.

Images are processed in blocks because every run of DALI has a fixed cost: with one image per run, DALI is
slower than Pillow. Pillow reads files that decoders read differently (see ``image_file.read_header``) and
files that changed after they were checked, without changing the order of the images. It also reads files that
DALI fails on, and a line is logged for each. Files that were not checked are checked first.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastcyclegan.data.background import ReadingThreads, Stopping, in_background, never
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.dali_pipeline import BLOCK, DaliPipeline, EncodedFile, parses
from fastcyclegan.data.fit import Fit, take_view
from fastcyclegan.data.halves import Half, half_box, why_not_halves
from fastcyclegan.data.image_file import Pixels, Size, is_whole, read_header
from fastcyclegan.data.loader import Job, Loader, Log, Row, Source, neighbours
from fastcyclegan.data.pillow_loader import read_with_pillow
from fastcyclegan.data.sample_plan import Plan, View
from fastcyclegan.data.source import have_one_fit

BLOCK_BYTES = 2**28
"""Maximum number of decoded bytes per block. Blocks of large images therefore contain fewer images."""
AHEAD = 2
"""Finished blocks that can wait for the consumer while another is resized and yet another is decoded."""


def resize_crop_and_flip(pixels: Pixels, fit: Fit, view: View | None, half: Half | None = None) -> Pixels:
    """Resize, crop and flip decoded ``pixels`` [H, W, 3], or a ``half`` of them, to [h, w, C]."""
    height, width = pixels.shape[:2]
    if half is not None:
        left, _, right, _ = half_box((width, height), half)
        pixels, width = np.ascontiguousarray(pixels[:, left:right]), right - left
    size = fit.resized((width, height))
    if fit.channels == 1:
        # torch has a fast filter only for three channels.
        gray = Image.fromarray(pixels).convert("L")
        if size != gray.size:
            gray = gray.resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(gray)[:, :, None]
    elif size != (width, height):
        pixels = _resized_by_torch(pixels, size)
    return take_view(pixels, fit, view).copy()


def _resized_by_torch(pixels: Pixels, size: Size) -> Pixels:
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    # Resize horizontally first, as Pillow did for years. Pillow 13 chooses the order from the sizes by a rule
    # of its own, and in a single call torch does too.
    for sides in ((pixels.shape[0], size[0]), (size[1], size[0])):
        if sides != tuple(planes.shape[2:]):
            planes = functional.interpolate(planes, size=sides, mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0).numpy()


@dataclass
class _Block:
    """The files that go through the pipeline together, and the results of their jobs."""

    files: list[EncodedFile]
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    ready: Any = None
    """A CUDA event that consumers wait for before they use the rows."""

    @property
    def jobs(self) -> list[Job]:
        return [job for file in self.files for job in file.jobs]

    @property
    def plain(self) -> list[EncodedFile]:
        return [file for file in self.files if file.plain]


class DaliReader:
    """A reader that reads images with DALI in blocks, in order and ahead of its consumer.

    All images are resized and cropped according to ``fit``. On a GPU, they are produced on the reader's own
    stream; once yielded, they are ready for use on the consumer's current stream. ``whole`` is as in
    ``DaliPipeline``.
    """

    def __init__(
        self,
        fit: Fit,
        device: torch.device,
        threads: int,
        log: Log = lambda text: None,
        *,
        whole: bool | None = None,
        stopping: Stopping = never,
    ) -> None:
        self.fit, self.device, self.threads, self.log = fit, device, max(threads, 1), log
        self.whole, self.stopping = whole, stopping
        self._refused: set[Path] = set()
        self._noted: set[Path] = set()
        self._warnings: list[str] = []
        self._has_warned = False

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]:
        """Yield each job with its pixels, in order."""
        with in_background(self._blocks(iter(jobs)), AHEAD, self.stopping) as blocks:
            for block in blocks:
                for note in block.notes:
                    self.log(note)
                for job, row in zip(block.jobs, block.rows, strict=True):
                    if block.ready is not None and isinstance(row, Tensor):
                        stream = torch.cuda.current_stream(self.device)
                        stream.wait_event(block.ready)
                        row.record_stream(stream)
                    yield job, row

    # The methods below run in the reader's thread.

    def _blocks(self, jobs: Iterator[Job]) -> Generator[_Block]:
        """Yield finished blocks. DALI decodes one block while the previous one is resized."""
        pipe = DaliPipeline(self.fit, self.device, self.threads, self.whole)
        stream = torch.cuda.Stream(self.device) if pipe.on_gpu else None
        with ReadingThreads(self.threads) as pool, torch.cuda.stream(stream):
            running: _Block | None = None
            try:
                for block in self._gathered(jobs, pool, pipe.whole):
                    outputs = self._collected(running, pipe)
                    for file in block.plain:
                        if file.path in self._refused:
                            file.refuse()
                    pipe.launch(block.plain)
                    if running is not None:
                        yield self._finished(running, outputs, pool, stream)
                    running = block
                if running is not None:
                    yield self._finished(running, self._collected(running, pipe), pool, stream)
            finally:
                pipe.close()

    def _gathered(self, jobs: Iterator[Job], pool: ReadingThreads, whole: bool) -> Iterator[_Block]:
        """Yield blocks of files; the threads of ``pool`` read the files up to one block ahead.

        ``whole`` is as in ``DaliPipeline``.
        """
        groups = neighbours(jobs)
        reading: deque[Future[EncodedFile]] = deque()
        for group in islice(groups, BLOCK):
            reading.append(pool.submit(self._fetch, group))
        files: list[EncodedFile] = []
        images, gathered = 0, 0
        while reading:
            file = reading.popleft().result()
            for group in islice(groups, 1):
                reading.append(pool.submit(self._fetch, group))
            decodings = len(file.jobs) if whole else 1
            size = file.size[0] * file.size[1] * 3 * decodings
            if files and (images + len(file.jobs) > BLOCK or gathered + size > BLOCK_BYTES):
                yield _Block(files)
                files, images, gathered = [], 0, 0
            files.append(file)
            images, gathered = images + len(file.jobs), gathered + size
        if files:
            yield _Block(files)

    def _fetch(self, jobs: tuple[Job, ...]) -> EncodedFile:
        """Return ``jobs`` as an EncodedFile, with the bytes of its file only if DALI should decode it."""
        job = jobs[0]
        known = job.checked
        size, plain = (0, 0), True
        if known is not None:
            size, plain = (known.width, known.height), known.plain
        if not plain:
            return EncodedFile(jobs, size)
        data = b""
        with contextlib.suppress(OSError):
            if job.path.is_file():
                data = job.path.read_bytes()
        if known is None:
            # DALI also decodes files that are not whole, so find out by the rule that holds for all files.
            size, plain = read_header(data)
            plain = plain and is_whole(data) and not (job.half is not None and why_not_halves(size))
        elif not data or not known.is_unchanged():  # asked after reading, so these bytes were checked
            plain = False
        if not plain:
            return EncodedFile(jobs, size)
        if not parses(data, size):
            return EncodedFile(jobs, size, refused=True)
        return EncodedFile(jobs, size, np.frombuffer(data, np.uint8), plain=True)

    def _collected(self, block: _Block | None, pipe: DaliPipeline) -> list[list[Any]]:
        """Return DALI's results for the plain files of ``block``, and record the files that DALI fails on."""
        if block is None:
            return []
        files = block.plain
        outputs = pipe.collect(files)
        for file in files:
            if file.refused:
                self._refused.add(file.path)
        return outputs

    def _finished(
        self,
        block: _Block,
        outputs: list[list[Any]],
        pool: ReadingThreads,
        stream: torch.cuda.Stream | None,
    ) -> _Block:
        """Return ``block`` with its rows: DALI's results for its plain files, Pillow's for the others."""
        decoded = iter(outputs)
        waiting: list[list[Future[list[Row]]] | list[Row]] = []
        for file in block.files:
            if not file.plain:
                waiting.append([pool.submit(read_with_pillow, file.jobs, self.fit, self._warnings.append)])
                continue
            pixels = next(decoded)
            if not isinstance(pixels[0], Tensor):
                pixels = [pool.submit(self._resize_crop_and_flip, pixels[0], job) for job in file.jobs]
            waiting.append(pixels)
        for file, results in zip(block.files, waiting, strict=True):
            rows = _rows_of(results)
            if file.refused and isinstance(rows[0], Tensor):
                self._note(file, block)
            block.rows += rows
        if self._warnings and not self._has_warned:
            self._has_warned = True
            block.notes.append(self._warnings[0])
        self._warnings.clear()
        if stream is not None:
            block.rows = [self._on_device(row) for row in block.rows]
            block.ready = stream.record_event()
        return block

    def _note(self, file: EncodedFile, block: _Block) -> None:
        """Add a note, once per file, that Pillow reads a file that DALI cannot decode."""
        path = file.path
        if path not in self._noted:
            self._noted.add(path)
            block.notes.append(f"DALI cannot decode {path}, so Pillow reads it")

    def _on_device(self, row: Row) -> Row:
        if isinstance(row, Tensor) and row.device.type == "cpu":
            return row.pin_memory().to(self.device, non_blocking=True)
        return row

    def _resize_crop_and_flip(self, pixels: Pixels, job: Job) -> list[Row]:
        return [torch.from_numpy(resize_crop_and_flip(pixels, self.fit, job.view, job.half))]


def _rows_of(results: Sequence[Future[list[Row]] | Row]) -> list[Row]:
    """Wait for ``results``, and return the rows that they are or that they return."""
    rows: list[Row] = []
    for result in results:
        if isinstance(result, Future):
            rows += result.result()
        else:
            rows.append(result)
    return rows


class DaliLoader(Loader):
    """A loader that reads images with DALI in ``threads`` threads, and on the GPU if ``device`` is one."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        plan: Plan,
        device: torch.device,
        *,
        threads: int = 1,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
        whole: bool | None = None,
    ) -> None:
        super().__init__(sources, plan, device, skip_bad_images=skip_bad_images, log=log)
        # Domains with the same fit share one pipeline, which reads images of A and B in turn.
        groups = [tuple(sources)] if have_one_fit(sources) else [(side,) for side in sources]
        self.readers = {
            sides: DaliReader(
                sources[sides[0]].fit, device, threads, log, whole=whole, stopping=lambda: self.stopping()
            )
            for sides in groups
        }

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        with contextlib.ExitStack() as stack:
            streams = dict[str, Generator[tuple[Job, Row]]]()
            for sides, reader in self.readers.items():
                stream = reader.read(self._jobs(start, stop, sides))
                stack.enter_context(contextlib.closing(stream))
                streams |= dict.fromkeys(sides, stream)
            for _, numbers in self.plan.batches(start, stop):
                rows = []
                for _ in numbers:
                    read = {side: next(streams[side]) for side in self.sources}
                    sample = read["A"][0].tag
                    rows.append(self._good(sample, {side: row for side, (_, row) in read.items()}))
                yield self._batch_of_rows(rows)

    def _jobs(self, start: int, stop: int, sides: Sequence[str]) -> Iterator[Job]:
        """Yield a job per image of the domains ``sides``, in the order of the samples."""
        for epoch, numbers in self.plan.batches(start, stop):
            for i in numbers:
                sample = self.plan.sample(epoch, i)
                for side in sides:
                    source = self.sources[side]
                    path = source.paths[sample.index(side)]
                    checked = source.checked.get(path)
                    yield Job(path, sample.view(side), checked, sample, source.half)
