"""Compile the kernels of an iteration before it runs for the first time.

A dry run on the CPU, with copies of the networks, determines which kernels are needed. Those that are missing
from Triton's cache are compiled on all cores.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastcyclegan.engine.devices import autocast
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.nn.networks import is_ours

if TYPE_CHECKING:
    from fastcyclegan.kernels._launch import Chip

# Maximum number of kinds of work to prepare for: training with one batch size, or translating images of one
# size with one network. A dataset with images of many sizes would otherwise add new kinds without end.
MAX_KINDS = 8
Log = Callable[[str], object]
Progress = Callable[[int, int, str], object]


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing, in place of the hooks of a copied network.

    Hooks are replaced rather than removed, because their presence affects which kernels run.
    """


def copy_on_cpu(net: nn.Module) -> nn.Module:
    """Return a copy of ``net`` on the CPU, with zero weights and with every hook replaced by ``_nothing``."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.zeros_like(p, device="cpu"), requires_grad=p.requires_grad)
    for buffer in net.buffers():
        memo[id(buffer)] = torch.zeros_like(buffer, device="cpu")
    for module in net.modules():
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                memo[id(hooks)] = OrderedDict.fromkeys(hooks, _nothing)
    copied: nn.Module = copy.deepcopy(net, memo)
    return copied


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Make ``impl="auto"`` select the kernels even on the CPU, and restore the random state afterwards."""
    with torch.random.fork_rng(devices=[]), as_on_gpu():
        yield


def dry_translation(net: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    """Run a copy of ``net`` on the CPU, on zeros shaped like ``images``.

    Call this inside a dry run, which records kernel launches without making them. The copy runs under
    autocast to ``dtype``, unless that is float32.
    """
    with torch.inference_mode(False):
        copied = copy_on_cpu(net).eval()
    with isolated(), torch.inference_mode(), autocast("cpu", dtype):
        copied(torch.zeros_like(images, device="cpu"))


class Ahead:
    """Compiles the kernels for each kind of work on ``device`` before that work runs for the first time.

    ``progress`` is called with (completed, total, text) while kernels are being compiled. Compiling ahead is
    optional: kernels that were not compiled ahead are compiled by the launch that needs them.
    """

    def __init__(
        self, device: torch.device, log: Log = lambda text: None, progress: Progress | None = None
    ) -> None:
        self.device, self.log = device, log
        self.progress = self._announce if progress is None else progress
        self._known: set[Hashable] = set()

    def _announce(self, completed: int, total: int, text: str) -> None:
        if completed == 0:
            self.log(text)

    def prepare(self, kind: Hashable, nets: dict[str, nn.Module], run: Callable[[], None]) -> None:
        """Compile the kernels that ``run`` launches, once for each ``kind`` of work.

        ``run`` performs a dry run of the work with ``nets``. If any of them is not one of this package's
        networks, nothing is compiled ahead, because the network's owner does not expect an additional run.
        """
        if kind in self._known or len(self._known) >= MAX_KINDS:
            return
        self._known.add(kind)
        if not all(is_ours(net) for net in nets.values()):
            return
        try:
            self._compile(run)
        # Copying or compiling can fail in any way. The launches will still compile what they need.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            self.log(
                f"kernels cannot be compiled ahead ({type(error).__name__}: {reason});"
                " each one will be compiled at its first launch"
            )

    def _compile(self, run: Callable[[], None]) -> None:
        # Imported late, because they need Triton.
        from fastcyclegan.devtools import compile_ahead
        from fastcyclegan.devtools.compile_kernels import jobs_of
        from fastcyclegan.kernels._launch import interpreted

        if interpreted():
            return
        chip = chip_of(self.device)
        required = jobs_of(run, chip)
        if len(compile_ahead.missing(required.jobs)) < compile_ahead.MIN_JOBS:
            return
        with compile_ahead.exclusive():
            # Another process may have compiled some of them in the meantime.
            jobs = compile_ahead.missing(required.jobs)
            text = self._announcement(len(jobs), chip.name, sum(required.choices.values()))
            outcome = compile_ahead.compile_ahead(
                jobs, lambda completed, total: self.progress(completed, total, text)
            )
        if outcome.failures:
            kernel, error = outcome.failures[0]
            first = kernel if kernel else "unknown"
            self.log(
                f"{len(outcome.failures)} kernels could not be compiled ahead; the first is {first}: {error}"
            )

    @staticmethod
    def _announcement(kernels: int, gpu: str, tiles: int) -> str:
        from fastcyclegan.devtools import compile_ahead
        from fastcyclegan.kernels._tune import SECONDS_PER_MEASUREMENT

        processes = compile_ahead.processes_for(kernels)
        seconds = compile_ahead.predicted_seconds(kernels, processes)
        text = (
            f"compiling {kernels} kernels for {gpu} in {processes} processes"
            f" (about {seconds:.0f} s, only once)"
        )
        if tiles:
            text += (
                f", then timing {tiles} tile sizes (about {tiles * SECONDS_PER_MEASUREMENT:.0f} s, only once)"
            )
        return text


def chip_of(device: torch.device) -> Chip:
    """Return the ``Chip`` that kernels on ``device`` are compiled for.

    Its ``descriptors`` is False if the driver does not accept tensor descriptors.
    """
    from fastcyclegan.kernels._launch import Chip
    from fastcyclegan.kernels.descriptor_launch import refusal

    return dataclasses.replace(Chip.of(device), descriptors=not refusal(device))
