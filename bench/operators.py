"""Time an operator on fixed inputs, and compare the results of the timed runs with float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor

from bench.machine import DEVICE
from bench.timing import Entrant, Steps, Unavailable
from fastcyclegan.engine import why_not_compiled
from fastcyclegan.testing import assert_parity

Operator = Callable[..., Tensor]
FAULT = 1.25
ROUNDS = {"cpu": 10, "cuda": 30}
# The rows and columns of the matrices of ``products``; with --bench-quick, QUICK_MATRIX.
MATRIX = {"cpu": 1536, "cuda": 8192}
QUICK_MATRIX = 256


@dataclass
class Case:
    """One operator to time, with its inputs and the direction.

    ``inputs`` is a list of tuples that are used in turn. Each contains the operator's arguments, followed by
    the gradient of its output. ``direction`` is "forward", "backward" (only the gradients of the arguments
    with the indices in ``needed``), or "all" (both directions, with all gradients). ``eager`` is PyTorch's
    own implementation. Its results in float64 are the truth, and its error in the dtype of the inputs
    determines the error that is allowed.
    """

    eager: Operator
    inputs: list[tuple[Tensor, ...]]
    direction: str
    needed: tuple[int, ...] = ()

    @property
    def _needed(self) -> tuple[int, ...]:
        if self.needed:
            return self.needed
        return tuple(range(len(self.inputs[0]) - 1))

    def _leaves(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        leaves = [t.detach() for t in arguments]
        if self.direction != "forward":
            for i in self._needed:
                leaves[i].requires_grad_()
        return leaves

    def _step(self, f: Operator, arguments: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        """Return a function to time: it runs ``f`` on ``arguments`` in the direction of this case.

        The last of ``arguments`` is the gradient of the output.
        """
        ts, dy = self._leaves(arguments[:-1]), arguments[-1]
        needed = [ts[i] for i in self._needed]
        if self.direction == "forward":
            return lambda: (f(*ts),)
        if self.direction == "all":
            return lambda: torch.autograd.grad(f(*ts), needed, dy)
        y = f(*ts)
        return lambda: torch.autograd.grad(y, needed, dy, retain_graph=True)

    def steps(self, f: Operator) -> list[Callable[[], tuple[Tensor, ...]]]:
        """Return the functions to time, one per input; each returns the tensors to check."""
        return [self._step(f, tensors) for tensors in self.inputs]

    @cached_property
    def _expected(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """The results of ``eager`` for each input, in the dtype of the inputs and in float64."""
        expected = []
        for tensors in self.inputs:
            exact = [t.double() for t in tensors]
            expected.append((self._step(self.eager, tensors)(), self._step(self.eager, exact)()))
        return expected

    def check(self, provider: str, results: list[tuple[Tensor, ...]]) -> None:
        """Raise AssertionError if a result of a round is not close enough to float64.

        The parity rule of ``fastcyclegan.testing`` sets the limit.
        """
        dtype = self.inputs[0][0].dtype
        assert len(results) == len(self._expected)
        for n, (ours, (reference, truth)) in enumerate(zip(results, self._expected, strict=True)):
            for i, (a, b, c) in enumerate(zip(ours, reference, truth, strict=True)):
                label = "output"
                if self.direction != "forward":
                    label = f"gradient of argument {self._needed[i]}"
                assert_parity(f"{provider}: {label}, input {n} of {len(results)}", a, b, c, dtype)

    def entrant(self, provider: str, f: Operator, fault: bool = False, **info: Any) -> Entrant:
        """Return ``f`` ready to be timed on these inputs; the check uses the results of its last round."""
        timed = f
        if fault:
            timed = _faulty(f)
        with no_donated_buffers():
            steps = Steps(lambda: self.steps(timed), DEVICE)
            steps()

        def run() -> None:
            torch._functorch.config.donated_buffer = False
            steps()
            torch._functorch.config.donated_buffer = True

        return Entrant(
            run, lambda: self.check(provider, steps.results), {"operations": len(self.inputs), **info}
        )


def _faulty(f: Operator) -> Operator:
    return lambda *ts: f(*ts) * FAULT


@contextlib.contextmanager
def no_donated_buffers() -> Iterator[None]:
    """Keep torch.compile from overwriting the buffers that a backward pass reads.

    The backward pass can then run repeatedly. The compiler's caches are off, because their keys ignore this
    setting: a cached program compiled without it would overwrite the buffers (the check found gradients of
    1e20).
    """
    with (
        torch._functorch.config.patch(donated_buffer=False),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        yield


def compiled(f: Operator) -> Operator:
    """Compile ``f`` with torch.compile, without CUDA graphs because a round already is one.

    Raises Unavailable if this machine cannot compile.
    """
    if reason := why_not_compiled(torch.device(DEVICE)):
        raise Unavailable(reason)
    mode = "default"
    if DEVICE == "cuda":
        mode = "max-autotune-no-cudagraphs"
    return torch.compile(f, dynamic=False, fullgraph=True, mode=mode)


def copies(bytes_each: int, count: int) -> Entrant:
    """Return an entrant that copies memory, as a reference for the rates in GB/s.

    Each copy reads and writes ``bytes_each`` bytes in total. ``count`` pairs of buffers are used in turn.
    """
    size = max(bytes_each // 8, 1)
    buffers = [torch.empty(2, size, dtype=torch.float32, device=DEVICE) for _ in range(count)]
    steps = Steps(lambda: [partial(b[1].copy_, b[0]) for b in buffers], DEVICE)
    return Entrant(steps, info={"operations": count, "bytes": count * 8 * size})


def products(dtype: torch.dtype) -> Entrant:
    """Return an entrant that runs a large square matrix product, as a reference for the rates."""
    size = MATRIX[DEVICE]
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    steps = Steps(lambda: [lambda: a @ b], DEVICE)
    return Entrant(steps, info={"operations": 1, "flops": 2 * size**3})


def channels_last(*size: int, dtype: torch.dtype) -> Tensor:
    """Return a channels_last tensor of standard normal random numbers."""
    return torch.randn(size, device=DEVICE, dtype=dtype).contiguous(memory_format=torch.channels_last)
