"""The DALI loader: files go in as bytes, in blocks; decoded, resized, cropped and mirrored pictures come out,
in the plan's order.

Who does what, by measurement: on a GPU, DALI does all of it there. On a CPU, DALI decodes (1.6 times as fast
as Pillow, and to the same pixels) and torch resizes: its antialiased cubic filter for 8-bit pictures computes
as Pillow's does, rounded between two passes, and so is within 2 levels of it if the passes have the same
order, in a seventh of the time. DALI's own filter does not round there and repeats the border: it is up to 11
levels off, and hardly faster than Pillow's.

Blocks, because DALI has a cost a run: at one picture a run it is slower than Pillow. Files that decoders read
in different ways (see ``picture.read_header``), and files that changed since they were checked, go through
Pillow in the same stream of pictures; so does one that DALI fails on, and that is said.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fastcyclegan.data.background import in_background
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.image_file import Fit, Pixels, Size, read_header, take_view
from fastcyclegan.data.loader import Job, Loader, Row, Say, Source
from fastcyclegan.data.pillow_loader import read_with_pillow
from fastcyclegan.data.sample_plan import Plan, Sample, View
from fastcyclegan.errors import UserError

BLOCK = 64
"""Pictures a run: 32 samples of both domains."""
BLOCK_BYTES = 2**28
"""Decoded bytes that a block may hold; large pictures make smaller blocks."""
AHEAD = 2
"""Finished blocks that wait for the consumer, while another is resized and another decoded."""


def why_not_dali(device: torch.device) -> str:
    """Return "" where DALI serves ``device``, else one line saying why not: found out by building a
    pipeline."""
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not installed (the extra dali, or dali-cu12 for a torch with CUDA 12)"
    if device.type not in ("cpu", "cuda"):
        return f"DALI does not serve the device {device.type}"
    try:
        from nvidia.dali import __cuda_version__, __version__

        # 13492 for CUDA 13.4.92
        theirs, ours = str(__cuda_version__)[:2], str(torch.version.cuda).split(".")[0]
        if device.type == "cuda" and theirs != ours:
            wanted = "dali-cu12" if ours == "12" else "dali"
            return (
                f"DALI {__version__} is built for CUDA {theirs} and torch for CUDA {ours}: install the extra"
                f" {wanted}"
            )
        parses(b"", (0, 0))
        DaliReader(Fit(), device, 1).probe()
    # Whatever the import or the driver raises is a reason not to take DALI; it is reported.
    except Exception as error:
        return f"DALI does not work here: {_one_line(error)}"
    return ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def shaped(pixels: Pixels, fit: Fit, view: View | None) -> Pixels:
    """Return decoded ``pixels`` [H, W, 3] resized, cropped and mirrored, [h, w, C]."""
    height, width = pixels.shape[:2]
    size = fit.resized((width, height))
    if fit.channels == 1:
        # torch has its fast filter for three channels alone.
        gray = Image.fromarray(pixels).convert("L")
        pixels = np.asarray(gray if size == gray.size else gray.resize(size, Image.Resampling.BICUBIC))[
            :, :, None
        ]
    elif size != (width, height):
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        # Horizontal first, as Pillow was for years (13 chooses by the sizes, by a rule of its own; so does
        # torch in one call).
        for sides in ((height, size[0]), (size[1], size[0])):
            if sides != tuple(planes.shape[2:]):
                planes = functional.interpolate(planes, size=sides, mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    return take_view(pixels, fit, view).copy()


def parses(data: bytes, size: Size) -> bool:
    """Whether DALI's parser finds a picture of ``size`` in ``data``.

    What it does not must never reach a pipeline: a parser that fails there leaves other threads at work on
    memory that is gone, which has crashed the process (DALI 2.4; a decoder that fails is harmless).
    """
    from nvidia import nvimgcodec

    try:
        stream = nvimgcodec.CodeStream(data)
        return (stream.width, stream.height) == size
    except RuntimeError:
        return False


@dataclass
class _File:
    """A job with its file's bytes. ``plain`` ones are for DALI; ``refused`` ones would be, but it does not
    take them.
    """

    job: Job
    size: Size
    data: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    plain: bool = False
    refused: bool = False


@dataclass
class _Block:
    """What goes through the pipeline together, and comes out."""

    files: list[_File]
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    ready: Any = None
    """A CUDA event: the rows are there for those who waited for it."""

    @property
    def plain(self) -> list[_File]:
        return [file for file in self.files if file.plain]


class DaliReader:
    """Reads pictures of one ``fit`` in order, by blocks, ahead of its consumer.

    On a GPU rows come on the consumer's current stream, made on a stream of the reader's own. ``whole`` has
    DALI do everything, as it does on a GPU; on a CPU that is for tests.
    """

    def __init__(
        self,
        fit: Fit,
        device: torch.device,
        threads: int,
        say: Say = lambda text: None,
        *,
        whole: bool | None = None,
    ) -> None:
        self.fit, self.device, self.threads, self.say = fit, device, max(threads, 1), say
        self.on_gpu = device.type == "cuda"
        self.whole = self.on_gpu if whole is None else whole
        self._refused: set[Path] = set()
        self._noted: set[Path] = set()

    def probe(self) -> None:
        """Build the pipeline and throw it away. Raises whatever stands in the way."""
        self._build()

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]:
        """Yield each job with its pixels, in order."""
        with in_background(self._blocks(iter(jobs)), AHEAD) as blocks:
            for block in blocks:
                for note in block.notes:
                    self.say(note)
                for file, row in zip(block.files, block.rows, strict=True):
                    if block.ready is not None and isinstance(row, Tensor):
                        stream = torch.cuda.current_stream(self.device)
                        stream.wait_event(block.ready)
                        row.record_stream(stream)
                    yield file.job, row

    # What follows runs in the reader's thread.

    def _blocks(self, jobs: Iterator[Job]) -> Generator[_Block]:
        """Yield finished blocks. DALI decodes one while the one before it is resized."""
        stream = torch.cuda.Stream(self.device) if self.on_gpu else None
        pipe = _Running(self)
        with ThreadPoolExecutor(self.threads, "fastcyclegan-read") as pool, torch.cuda.stream(stream):
            running: _Block | None = None
            try:
                for block in self._gathered(jobs, pool):
                    outputs = pipe.collect(running) if running is not None else []
                    for file in block.files:
                        if file.plain and file.job.path in self._refused:
                            file.plain, file.refused = False, True
                    pipe.launch(block.plain)
                    if running is not None:
                        yield self._finished(running, outputs, pool, stream)
                    running = block
                if running is not None:
                    yield self._finished(running, pipe.collect(running), pool, stream)
            finally:
                pool.shutdown(cancel_futures=True)
                pipe.close()

    def _gathered(self, jobs: Iterator[Job], pool: ThreadPoolExecutor) -> Iterator[_Block]:
        """Yield blocks of files, read by the pool up to one block ahead."""
        reading: deque[Future[_File]] = deque(pool.submit(self._fetch, job) for job in islice(jobs, BLOCK))
        files: list[_File] = []
        held = 0
        while reading:
            file = reading.popleft().result()
            reading.extend(pool.submit(self._fetch, job) for job in islice(jobs, 1))
            size = file.size[0] * file.size[1] * 3
            if files and (len(files) == BLOCK or held + size > BLOCK_BYTES):
                yield _Block(files)
                files, held = [], 0
            files.append(file)
            held += size
        if files:
            yield _Block(files)

    def _fetch(self, job: Job) -> _File:
        known = job.checked
        if known is not None and not (known.plain and known.is_unchanged()):
            return _File(job, (known.width, known.height))
        try:
            data = job.path.read_bytes() if job.path.is_file() else b""
        except OSError:
            data = b""
        if not data:  # Pillow will find the same, and name it
            return _File(job, (0, 0) if known is None else (known.width, known.height))
        size, plain = read_header(data) if known is None else ((known.width, known.height), True)
        if not plain:
            return _File(job, size)
        if not parses(data, size):
            return _File(job, size, refused=True)
        return _File(job, size, np.frombuffer(data, np.uint8), plain=True)

    def _finished(
        self, block: _Block, outputs: list[Any], pool: ThreadPoolExecutor, stream: torch.cuda.Stream | None
    ) -> _Block:
        """Return ``block`` with its rows, from what DALI made of its plain files, and Pillow of the
        others."""
        decoded = iter(outputs)
        waiting: list[Future[Row] | Tensor] = []
        for file in block.files:
            if not file.plain:
                waiting.append(pool.submit(read_with_pillow, file.job, self.fit))
            elif self.whole:
                waiting.append(next(decoded))
            else:
                waiting.append(pool.submit(self._shaped, next(decoded), file.job.view))
        rows = [row if isinstance(row, Tensor) else row.result() for row in waiting]
        for file, row in zip(block.files, rows, strict=True):
            if file.refused and isinstance(row, Tensor) and file.job.path not in self._noted:
                self._noted.add(file.job.path)
                block.notes.append(f"DALI cannot decode {file.job.path}, so Pillow reads it")
        if stream is not None:
            rows = [self._on_device(row) for row in rows]
            block.ready = stream.record_event()
        block.rows = rows
        return block

    def _on_device(self, row: Row) -> Row:
        if isinstance(row, Tensor) and row.device.type == "cpu":
            return row.pin_memory().to(self.device, non_blocking=True)
        return row

    def _shaped(self, pixels: Pixels, view: View | None) -> Tensor:
        return torch.from_numpy(shaped(pixels, self.fit, view))

    def _build(self) -> Any:
        """Return a pipeline from encoded files, and, where DALI does everything, their sizes and places, to
        pixels [H, W, C].
        """
        from nvidia.dali import Pipeline, fn, types

        device_id = (
            (self.device.index if self.device.index is not None else torch.cuda.current_device())
            if self.on_gpu
            else None
        )
        pipe = Pipeline(
            batch_size=BLOCK,
            num_threads=self.threads,
            device_id=device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipe:
            # The hardware's decoder and the CUDA one differ by a level; sharing a block between them would
            # make a picture depend on its place in it, and a resumed run differ. Chroma is interpolated as
            # libjpeg, and so Pillow, does.
            pixels = fn.decoders.image(
                fn.external_source(name="files", dtype=types.UINT8, ndim=1),
                device="mixed" if self.on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                hw_decoder_load=0.0,
                jpeg_fancy_upsampling=True,
            )
            if self.whole:
                if self.fit.channels == 1:
                    pixels = _luma(pixels)
                size, anchor, shape = (
                    fn.external_source(name=name, dtype=types.INT32, ndim=1)
                    for name in ("size", "anchor", "shape")
                )
                mirrored = fn.external_source(name="mirrored", dtype=types.INT32, ndim=0)
                pixels = fn.resize(
                    pixels,
                    size=fn.cast(size, dtype=types.FLOAT),
                    interp_type=types.INTERP_CUBIC,
                    antialias=True,
                )
                pixels = fn.slice(pixels, start=anchor, shape=shape, axes=[0, 1])
                pixels = fn.flip(pixels, horizontal=mirrored)
            pipe.set_outputs(pixels)
        pipe.build()
        return pipe


def _luma(pixels: Any) -> Any:
    """Return RGB as gray by Pillow's integers: (19595 R + 38470 G + 7471 B + 32768) >> 16."""
    from nvidia.dali import fn, types

    red, green, blue = (fn.cast(pixels[:, :, c : c + 1], dtype=types.INT32) for c in range(3))
    return fn.cast((red * 19595 + green * 38470 + blue * 7471 + 32768) // 65536, dtype=types.UINT8)


class _Running:
    """A pipeline at work: one block is launched, then collected. It is built again after a file broke it."""

    def __init__(self, reader: DaliReader) -> None:
        self.reader = reader
        self.pipe: Any = None

    def close(self) -> None:
        self.pipe = None

    def launch(self, files: list[_File]) -> None:
        """Start decoding ``files``."""
        if not files:
            return
        if self.pipe is None:
            self.pipe = self.reader._build()
        self.pipe.feed_input("files", [file.data for file in files])
        if self.reader.whole:
            for name, values in _places(files, self.reader.fit).items():
                self.pipe.feed_input(name, values)
        self.pipe.schedule_run()

    def collect(self, block: _Block) -> list[Any]:
        """Return what was made of the plain files of ``block``: tensors, or, where torch resizes, arrays of
        decoded pixels.

        A file that DALI fails on is found by trying each alone; it is no plain one from now on.
        """
        if not block.plain:
            return []
        try:
            return self._outputs()
        except RuntimeError as error:
            self.close()
            culprits = [file for file in block.plain if not self._decodes(file)]
            if not culprits:
                raise UserError(
                    f"DALI failed: {_one_line(error)}; --loader folder reads with Pillow"
                ) from None
            for file in culprits:
                file.plain, file.refused = False, True
                self.reader._refused.add(file.job.path)
            self.launch(block.plain)
            return self.collect(block)

    def _decodes(self, file: _File) -> bool:
        try:
            self.launch([file])
            self._outputs()
        except RuntimeError:
            self.close()
            return False
        return True

    def _outputs(self) -> list[Any]:
        on_gpu = self.reader.on_gpu
        (pixels,) = self.pipe.share_outputs(torch.cuda.current_stream() if on_gpu else None)
        if on_gpu:
            # Copies, in torch's memory: it knows which streams they are used on, and DALI's may be used
            # again.
            if pixels.is_dense_tensor():
                rows = list(torch.from_dlpack(pixels.as_tensor()).clone())
            else:
                rows = [torch.from_dlpack(pixels[n]).clone() for n in range(len(pixels))]
        elif self.reader.whole:
            rows = [torch.from_numpy(np.array(one)) for one in pixels]
        else:
            rows = [np.asarray(one) for one in pixels]
        self.pipe.release_outputs()
        return rows


def _places(files: list[_File], fit: Fit) -> dict[str, NDArray[np.int32]]:
    """Return for each file its size after the resize, the place and the shape of its crop, all as (height,
    width), and the mirror.
    """
    sizes = [fit.resized(file.size) for file in files]
    boxes = [fit.box(size, file.job.view) for size, file in zip(sizes, files, strict=True)]
    values = {
        "size": [(height, width) for width, height in sizes],
        "anchor": [(top, left) for left, top, _, _ in boxes],
        "shape": [(height, width) for _, _, width, height in boxes],
        "mirrored": [file.job.view is not None and file.job.view.flip for file in files],
    }
    return {name: np.array(value, np.int32) for name, value in values.items()}


class DaliLoader(Loader):
    """Reads with DALI in ``threads`` threads (and on the GPU, if that is the device)."""

    def __init__(
        self,
        a: Source,
        b: Source,
        plan: Plan,
        device: torch.device,
        *,
        threads: int = 1,
        skip_bad_images: bool = False,
        say: Say = lambda text: None,
        whole: bool | None = None,
    ) -> None:
        super().__init__(a, b, plan, device, skip_bad_images=skip_bad_images, say=say)
        # Pictures of one fit go through one pipeline, A and B in turn.
        sources = [a] if a.fit == b.fit else [a, b]
        self.readers = [DaliReader(source.fit, device, threads, say, whole=whole) for source in sources]

    def _jobs(self, start: int, stop: int, sides: str) -> Iterator[Job]:
        for epoch, numbers in self.plan.batches(start, stop):
            for i in numbers:
                sample = self.plan.sample(epoch, i)
                wanted = {
                    "A": (self.a, sample.index_A, sample.view_A),
                    "B": (self.b, sample.index_B, sample.view_B),
                }
                for source, index, view in (wanted[side] for side in sides):
                    path = source.paths[index]
                    yield Job(path, view, source.checked.get(path), sample)

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        with contextlib.ExitStack() as stack:
            sides = ["AB"] if len(self.readers) == 1 else ["A", "B"]
            streams = [
                stack.enter_context(contextlib.closing(reader.read(self._jobs(start, stop, side))))
                for reader, side in zip(self.readers, sides, strict=True)
            ]
            in_A, in_B = streams[0], streams[-1]
            for _, numbers in self.plan.batches(start, stop):
                yield self._batch_of_rows([self._sample(next(in_A), next(in_B)) for _ in numbers])

    def _sample(self, a: tuple[Job, Row], b: tuple[Job, Row]) -> tuple[Tensor, Tensor, Sample]:
        return self._rescued_pair(a[0].tag, a[1], b[1])
