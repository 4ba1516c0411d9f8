"""Decode blocks of encoded files with a DALI pipeline, and check whether DALI works on this machine.

On a GPU, DALI decodes, resizes, crops and flips. On a CPU it only decodes, 1.6 times as fast as Pillow and to
the same pixels; ``dali_loader.py`` describes how the rest is done.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcyclegan.data.fit import Fit
from fastcyclegan.data.halves import half_box, half_size
from fastcyclegan.data.image_file import Size
from fastcyclegan.data.loader import Job
from fastcyclegan.errors import UserError, one_line

BLOCK = 64
"""Images per pipeline run: 32 samples of both domains."""


def why_not_dali(device: torch.device) -> str:
    """Return why DALI cannot be used on ``device``, in one line, or "" if it can.

    The check includes building a pipeline.
    """
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not installed: install the extra dali, or dali-cu12 for a torch with CUDA 12"
    if device.type not in ("cpu", "cuda"):
        return f"DALI does not support the device {device.type}"
    try:
        if device.type == "cuda":
            other_cuda = _why_not_this_cuda()
            if other_cuda:
                return other_cuda
        parses(b"", (0, 0))
        DaliPipeline(Fit(), device, 1).build()
    # Anything that the import or the driver raises is a reason not to use DALI, and it is reported.
    except Exception as error:
        return f"DALI does not work here: {one_line(error, 300)}"
    return ""


def _why_not_this_cuda() -> str:
    from nvidia.dali import __cuda_version__, __version__

    # DALI reports CUDA 13.4.92 as 13492.
    dali_cuda, torch_cuda = str(__cuda_version__)[:2], str(torch.version.cuda).split(".")[0]
    if dali_cuda == torch_cuda:
        return ""
    extra = "dali-cu12" if torch_cuda == "12" else "dali"
    return (
        f"DALI {__version__} is built for CUDA {dali_cuda}, but torch for CUDA {torch_cuda}; install the"
        f" extra {extra}"
    )


def parses(data: bytes, size: Size) -> bool:
    """Return whether DALI's parser finds an image of ``size`` in ``data``.

    Data that it cannot parse must never reach a pipeline. If the parser fails inside a pipeline, other
    threads continue to work on freed memory, which has crashed the process (DALI 2.4). A decoder that fails
    is harmless.
    """
    from nvidia import nvimgcodec

    try:
        stream = nvimgcodec.CodeStream(data)
        return (stream.width, stream.height) == size
    except RuntimeError:
        return False


@dataclass
class EncodedFile:
    """The jobs of one file, and the bytes of the file.

    There are several jobs if they read different halves of it. DALI decodes the file if ``plain`` is true.
    ``refused`` marks a file that DALI should decode but cannot.
    """

    jobs: tuple[Job, ...]
    size: Size
    data: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    plain: bool = False
    refused: bool = False

    @property
    def path(self) -> Path:
        return self.jobs[0].path

    def refuse(self) -> None:
        self.plain, self.refused = False, True


class DaliPipeline:
    """A DALI pipeline that processes one block at a time.

    ``launch`` starts to decode a block, and ``collect`` then returns the results.

    The pipeline is rebuilt after a file has made it fail. If ``whole`` is true, DALI also resizes, crops and
    flips. This is the default on a GPU; on a CPU it is only used in tests. Files are then decoded once per
    job, because each decoded image has one result; otherwise only once.
    """

    def __init__(self, fit: Fit, device: torch.device, threads: int, whole: bool | None = None) -> None:
        self.fit, self.device, self.threads = fit, device, threads
        self.on_gpu = device.type == "cuda"
        self.whole = self.on_gpu if whole is None else whole
        self.cuts_halves = False
        self.pipe: Any = None

    def build(self) -> Any:
        """Return a pipeline that turns encoded files into pixels [H, W, C].

        If ``whole`` is true, the sizes and crops of the images are inputs as well, and so are the halves if
        images are halves of files. Raises UserError if the system allows no more threads.
        """
        from nvidia.dali import Pipeline, fn, types

        pipe = Pipeline(
            batch_size=BLOCK,
            num_threads=self.threads,
            device_id=self._device_id(),
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with pipe:
            # The results of the hardware decoder and the CUDA decoder differ by one level. If both worked on
            # a block, an image's pixels would depend on its place in the block, and a resumed run would
            # differ. Chroma is interpolated as in libjpeg, and therefore as in Pillow.
            pixels = fn.decoders.image(
                fn.external_source(name="files", dtype=types.UINT8, ndim=1),
                device="mixed" if self.on_gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,
                hw_decoder_load=0.0,
                jpeg_fancy_upsampling=True,
            )
            if self.cuts_halves:
                pixels = _cut(pixels)
            if self.whole:
                pixels = _resize_crop_and_flip(pixels, self.fit.channels)
            pipe.set_outputs(pixels)
        try:
            pipe.build()
        except RuntimeError as error:
            if os.strerror(errno.EAGAIN) not in str(error):
                raise
            reason = "DALI cannot start its threads: the system allows no more, or has no memory for them"
            raise UserError(f"{reason}; use --loader folder") from None
        return pipe

    def _device_id(self) -> int | None:
        if not self.on_gpu:
            return None
        if self.device.index is None:
            return torch.cuda.current_device()
        return self.device.index

    def close(self) -> None:
        self.pipe = None

    def launch(self, files: list[EncodedFile]) -> None:
        """Start decoding ``files``."""
        if not files:
            return
        images = [(file, job) for file in files for job in self._separate(file)]
        if self.whole and not self.cuts_halves and any(job.half is not None for _, job in images):
            self.close()
            self.cuts_halves = True
        if self.pipe is None:
            self.pipe = self.build()
        self.pipe.feed_input("files", [file.data for file, _ in images])
        if self.whole:
            geometry = _geometry(images, self.fit)
            if self.cuts_halves:
                geometry |= _halves(images)
            for name, values in geometry.items():
                self.pipe.feed_input(name, values)
        self.pipe.schedule_run()

    def _separate(self, file: EncodedFile) -> tuple[Job, ...]:
        """Return the jobs of ``file`` for which it is decoded separately."""
        return file.jobs if self.whole else file.jobs[:1]

    def collect(self, files: list[EncodedFile]) -> list[list[Any]]:
        """Return the results for each of the launched ``files``.

        They are tensors, one for each job, or one decoded array if torch resizes the images.

        If DALI fails, each file is tried separately to find the ones that cause it. These are marked as
        refused and left out of the results.
        """
        if not files:
            return []
        try:
            outputs = iter(self._outputs())
            return [list(islice(outputs, len(self._separate(file)))) for file in files]
        except RuntimeError as error:
            self.close()
            culprits = [file for file in files if not self._decodes(file)]
            if not culprits:
                reason = one_line(error, 300)
                raise UserError(f"DALI failed: {reason}; pass --loader folder to read with Pillow") from None
        for file in culprits:
            file.refuse()
        good = [file for file in files if file.plain]
        self.launch(good)
        return self.collect(good)

    def _decodes(self, file: EncodedFile) -> bool:
        try:
            self.launch([file])
            self._outputs()
        except RuntimeError:
            self.close()
            return False
        return True

    def _outputs(self) -> list[Any]:
        (pixels,) = self.pipe.share_outputs(torch.cuda.current_stream() if self.on_gpu else None)
        if self.on_gpu:
            # Copy into torch's memory. torch tracks which streams use it, whereas DALI may reuse its own
            # memory.
            if pixels.is_dense_tensor():
                rows = list(torch.from_dlpack(pixels.as_tensor()).clone())
            else:
                rows = [torch.from_dlpack(pixels[n]).clone() for n in range(len(pixels))]
        elif self.whole:
            rows = [torch.from_numpy(np.array(image)) for image in pixels]
        else:
            rows = [np.asarray(image) for image in pixels]
        self.pipe.release_outputs()
        return rows


def _resize_crop_and_flip(pixels: Any, channels: int) -> Any:
    """Resize, crop and flip decoded pixels according to the inputs that ``_geometry`` provides."""
    from nvidia.dali import fn, types

    if channels == 1:
        pixels = _luma(pixels)
    size, anchor, shape = (
        fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("size", "anchor", "shape")
    )
    mirrored = fn.external_source(name="mirrored", dtype=types.INT32, ndim=0)
    size = fn.cast(size, dtype=types.FLOAT)
    pixels = fn.resize(pixels, size=size, interp_type=types.INTERP_CUBIC, antialias=True)
    pixels = fn.slice(pixels, start=anchor, shape=shape, axes=[0, 1])
    return fn.flip(pixels, horizontal=mirrored)


def _luma(pixels: Any) -> Any:
    """Convert RGB to gray with Pillow's integer formula: (19595 R + 38470 G + 7471 B + 32768) >> 16."""
    from nvidia.dali import fn, types

    red, green, blue = (fn.cast(pixels[:, :, c : c + 1], dtype=types.INT32) for c in range(3))
    return fn.cast((red * 19595 + green * 38470 + blue * 7471 + 32768) // 65536, dtype=types.UINT8)


def _cut(pixels: Any) -> Any:
    """Cut the halves out of decoded pixels that the inputs of ``_halves`` name."""
    from nvidia.dali import fn, types

    start, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("start", "half"))
    return fn.slice(pixels, start=start, shape=shape, axes=[0, 1])


def _halves(images: list[tuple[EncodedFile, Job]]) -> dict[str, NDArray[np.int32]]:
    """Return, per image, the place and the shape (height, width) of its half of the file, or of the whole."""
    starts, shapes = [], []
    for file, job in images:
        left, top, right, bottom = half_box(file.size, job.half)
        starts.append((top, left))
        shapes.append((bottom - top, right - left))
    return {"start": np.array(starts, np.int32), "half": np.array(shapes, np.int32)}


def _geometry(images: list[tuple[EncodedFile, Job]], fit: Fit) -> dict[str, NDArray[np.int32]]:
    """Return, per image, the size after the resize, the place and shape of the crop, and the flip.

    Sizes, places and shapes are (height, width).
    """
    sizes, anchors, shapes, mirrored = [], [], [], []
    for file, job in images:
        view = job.view
        width, height = fit.resized(half_size(file.size, job.half))
        left, top, crop_width, crop_height = fit.box((width, height), view)
        sizes.append((height, width))
        anchors.append((top, left))
        shapes.append((crop_height, crop_width))
        mirrored.append(view is not None and view.flip)
    values = {"size": sizes, "anchor": anchors, "shape": shapes, "mirrored": mirrored}
    return {name: np.array(value, np.int32) for name, value in values.items()}
