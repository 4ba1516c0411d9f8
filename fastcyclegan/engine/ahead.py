"""Kernels compiled before an iteration needs them: a dry run of a copy on the CPU tells which, all cores
compile what is missing.
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

# Kinds of work (sizes of batch, networks that translate) that are looked at beforehand: a dataset of many
# sizes has no end of them.
MOST_KINDS = 8
Log = Callable[[str], object]
Progress = Callable[[int, int, str], object]


def _nothing(*_: Any, **__: Any) -> None:
    """What stands for a hook in a copy: that there is one decides which kernels run."""


def copy_on_cpu(net: nn.Module) -> nn.Module:
    """Return a copy of ``net`` on the CPU with weights of zero, whose hooks do nothing."""
    memo: dict[int, Any] = {}
    for p in net.parameters():
        memo[id(p)] = nn.Parameter(torch.zeros_like(p, device="cpu"), requires_grad=p.requires_grad)
    for buffer in net.buffers():
        memo[id(buffer)] = torch.zeros_like(buffer, device="cpu")
    for module in net.modules():
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                memo[id(hooks)] = OrderedDict.fromkeys(hooks, _nothing)
    found: nn.Module = copy.deepcopy(net, memo)
    return found


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside the block "auto" means the kernels on the CPU too, and no random number of the caller's is used
    up.
    """
    with torch.random.fork_rng(devices=[]), as_on_gpu():
        yield


def dry_translation(net: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    """Run a copy of ``net`` on the CPU on images like ``images``, under autocast to ``dtype`` where that is
    no float32; in a dry run.
    """
    with torch.inference_mode(False):
        other = copy_on_cpu(net).eval()
    with apart(), torch.inference_mode(), autocast("cpu", dtype):
        other(torch.zeros_like(images, device="cpu"))


class Ahead:
    """Compiles what a kind of work launches on ``device`` before it runs for the first time; ``progress``
    hears how far it is.

    Nothing depends on it: what is not compiled ahead is compiled by the launch that needs it.
    """

    def __init__(
        self, device: torch.device, log: Log = lambda text: None, progress: Progress | None = None
    ) -> None:
        self.device, self.log = device, log
        self.progress = self._announce if progress is None else progress
        self._known: set[Hashable] = set()

    def _announce(self, done: int, total: int, text: str) -> None:
        if done == 0:
            self.log(text)

    def prepare(self, kind: Hashable, nets: dict[str, nn.Module], run: Callable[[], None]) -> None:
        """Compile the kernels of ``run``, a dry run of work of this ``kind`` with ``nets``, unless that was
        done before.

        Networks that are not this package's are not run one more time than their owner knows of.
        """
        if kind in self._known or len(self._known) >= MOST_KINDS:
            return
        self._known.add(kind)
        if not all(is_ours(net) for net in nets.values()):
            return
        try:
            self._compile(run)
        # Whatever a copy or a compiler does: the launches will do without.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            self.log(
                f"kernels are compiled as they are launched, not ahead: {type(error).__name__}: {reason}"
            )

    def _compile(self, run: Callable[[], None]) -> None:
        # Imported late: they need Triton.
        from fastcyclegan.devtools import compile_ahead
        from fastcyclegan.devtools.compile_kernels import jobs_of
        from fastcyclegan.kernels._launch import interpreted

        if interpreted():
            return
        chip = chip_of(self.device)
        found = jobs_of(run, chip)
        if len(compile_ahead.missing(found.jobs)) < compile_ahead.FEWEST:
            return
        with compile_ahead.alone():
            # What another process was compiling meanwhile is there now.
            jobs = compile_ahead.missing(found.jobs)
            text = self._announcement(len(jobs), chip.name, sum(found.choices.values()))
            outcome = compile_ahead.compile_ahead(jobs, lambda done, total: self.progress(done, total, text))
        if outcome.failures:
            kernel, error = outcome.failures[0]
            first = kernel if kernel else "unknown"
            self.log(f"{len(outcome.failures)} kernels do not compile ahead, the first is {first}: {error}")

    @staticmethod
    def _announcement(kernels: int, gpu: str, tiles: int) -> str:
        from fastcyclegan.devtools import compile_ahead
        from fastcyclegan.kernels._tune import SECONDS_A_MEASUREMENT

        processes = compile_ahead.processes_for(kernels)
        seconds = compile_ahead.predicted_seconds(kernels, processes)
        text = f"compiling {kernels} kernels for {gpu} in {processes} processes, about {seconds:.0f} s, once"
        if tiles:
            text += f"; then timing {tiles} tiles, about {tiles * SECONDS_A_MEASUREMENT:.0f} s, once"
        return text


def chip_of(device: torch.device) -> Chip:
    """Return the GPU ``device`` as its kernels see it."""
    from fastcyclegan.kernels._launch import Chip
    from fastcyclegan.kernels.descriptor_launch import refusal

    return dataclasses.replace(Chip.of(device), descriptors=not refusal(device))
