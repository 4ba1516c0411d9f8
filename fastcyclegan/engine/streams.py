"""The CUDA streams of an engine: one for all iterations, and others for work that runs concurrently.

Other devices have no streams, and everything runs in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import torch

from fastcyclegan.data.batch import Batch
from fastcyclegan.engine.choices import EngineChoices


class Streams:
    """The streams of an engine. A stream that is not used is None.

    All iterations run on ``iteration``, both captured ones and those before a capture, because autograd
    remembers the stream on which gradients were first accumulated. Weight gradients are computed on
    ``weight_gradients``, and the second phase runs on ``phase``.
    """

    def __init__(self, choices: EngineChoices) -> None:
        self.device = choices.device
        self.iteration = self._stream(self.device.type == "cuda")
        self.weight_gradients = self._stream(choices.weight_stream)
        self.phase = self._stream(choices.phase_stream)

    def _stream(self, wanted: bool) -> torch.cuda.Stream | None:
        if not wanted:
            return None
        return torch.cuda.Stream(self.device)

    @contextlib.contextmanager
    def running_iteration(self) -> Iterator[None]:
        """Run the block on the iteration stream, in order with the caller's earlier and later launches."""
        if self.iteration is None:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        self.iteration.wait_stream(outer)
        with torch.cuda.stream(self.iteration):
            yield
        outer.wait_stream(self.iteration)

    @contextlib.contextmanager
    def running_second_phase(self) -> Iterator[None]:
        """Run the block on the stream of the second phase, after earlier launches.

        Call ``join_phases`` to wait for it.
        """
        if self.phase is None:
            yield
            return
        self.phase.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.phase):
            yield

    def join_phases(self) -> None:
        """Make later launches wait for the second phase."""
        if self.phase is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.phase)

    def join_weight_gradients(self) -> None:
        """Make later launches wait for the weight gradients."""
        if self.weight_gradients is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.weight_gradients)

    def keep(self, batch: Batch) -> None:
        """Prevent reuse of the memory of ``batch`` until the iterations launched so far have finished."""
        if self.iteration is not None:
            for images in batch.images.values():
                images.record_stream(self.iteration)

    def uploading(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Yield ``batches``, copied to the device on a separate stream while an iteration runs."""
        if self.iteration is None:
            yield from batches
            return
        copying = torch.cuda.Stream(self.device)
        with contextlib.closing(batches):
            while True:
                with torch.cuda.stream(copying):
                    batch = next(batches, None)
                if batch is None:
                    return
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(copying)
                for images in batch.images.values():
                    images.record_stream(current)
                yield batch
