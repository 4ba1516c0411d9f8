"""The CUDA streams of an engine: the one that all iterations run on, and those for work beside it. On other
devices there are none, and everything runs in order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator

import torch

from fastcyclegan.data.batch import Batch
from fastcyclegan.engine.choices import EngineChoices


class Streams:
    """``iteration``: all iterations, the captured ones and those before: autograd remembers where gradients
    were first added. ``weight_gradients``. ``phase``: the second phase.
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
        """Run the block on the iterations' stream, after what was launched before and before what follows."""
        if self.iteration is None:
            yield
            return
        around = torch.cuda.current_stream(self.device)
        self.iteration.wait_stream(around)
        with torch.cuda.stream(self.iteration):
            yield
        around.wait_stream(self.iteration)

    @contextlib.contextmanager
    def running_second_phase(self) -> Iterator[None]:
        """Run the block on the second phase's stream, after what was launched before; see ``join_phases``."""
        if self.phase is None:
            yield
            return
        self.phase.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.phase):
            yield

    def join_phases(self) -> None:
        """Have what follows wait for the second phase."""
        if self.phase is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.phase)

    def join_weight_gradients(self) -> None:
        """Have what follows wait for the weight gradients."""
        if self.weight_gradients is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.weight_gradients)

    def keep(self, batch: Batch) -> None:
        """Leave the memory of ``batch`` alone until the iterations launched so far are done with it."""
        if self.iteration is not None:
            batch.A.record_stream(self.iteration)
            batch.B.record_stream(self.iteration)

    def uploading(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Yield ``batches``, whose way to the device goes on a stream of its own: beside the iteration that
        runs.
        """
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
                here = torch.cuda.current_stream(self.device)
                here.wait_stream(copying)
                batch.A.record_stream(here)
                batch.B.record_stream(here)
                yield batch
