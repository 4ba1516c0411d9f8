"""An operator on given inputs: what of it is timed, and how what the timed runs have written is held to
float64.
"""

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
MATRIX = {"cpu": 1536, "cuda": 8192}


@dataclass
class Case:
    """``given``: the operator's arguments and the gradient of its output, as many times as inputs go round.

    ``direction``: "forward", "backward" (alone, of the arguments numbered in ``wanted``), or "all": both,
    with all gradients. ``eager`` is PyTorch's own: the yardstick in the dtype of the inputs, and in float64
    the truth.
    """

    eager: Operator
    given: list[tuple[Tensor, ...]]
    direction: str
    wanted: tuple[int, ...] = ()

    @property
    def _wanted(self) -> tuple[int, ...]:
        if self.wanted:
            return self.wanted
        return tuple(range(len(self.given[0]) - 1))

    def _leaves(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        leaves = [t.detach() for t in arguments]
        if self.direction != "forward":
            for i in self._wanted:
                leaves[i].requires_grad_()
        return leaves

    def _step(self, f: Operator, arguments: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        """Return what is timed of ``f`` on ``arguments`` and its output's gradient."""
        ts, dy = self._leaves(arguments[:-1]), arguments[-1]
        wanted = [ts[i] for i in self._wanted]
        if self.direction == "forward":
            return lambda: (f(*ts),)
        if self.direction == "all":
            return lambda: torch.autograd.grad(f(*ts), wanted, dy)
        y = f(*ts)
        return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)

    def steps(self, f: Operator) -> list[Callable[[], tuple[Tensor, ...]]]:
        """Return what is timed, one function for each input; each returns what is to be checked."""
        return [self._step(f, tensors) for tensors in self.given]

    @cached_property
    def _expected(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """What PyTorch's own gives in the dtype of the inputs, and in float64."""
        expected = []
        for tensors in self.given:
            exact = [t.double() for t in tensors]
            expected.append((self._step(self.eager, tensors)(), self._step(self.eager, exact)()))
        return expected

    def check(self, provider: str, results: list[tuple[Tensor, ...]]) -> None:
        """Raise AssertionError unless every result of a round is as near to float64 as the rule of
        ``fastcyclegan.testing`` asks.
        """
        dtype = self.given[0][0].dtype
        assert len(results) == len(self._expected)
        for n, (ours, (theirs, truth)) in enumerate(zip(results, self._expected, strict=True)):
            for i, (a, b, c) in enumerate(zip(ours, theirs, truth, strict=True)):
                what = "output"
                if self.direction != "forward":
                    what = f"gradient of argument {self._wanted[i]}"
                assert_parity(f"{provider}: {what}, input {n} of {len(results)}", a, b, c, dtype)

    def entrant(self, provider: str, f: Operator, fault: bool = False, **info: Any) -> Entrant:
        """Return ``f`` ready to be timed on these inputs, and checked on what it wrote in its last round."""
        timed = f
        if fault:
            timed = _faulty(f)
        with kept_buffers():
            steps = Steps(lambda: self.steps(timed), DEVICE)
            steps()

        def run() -> None:
            torch._functorch.config.donated_buffer = False
            steps()
            torch._functorch.config.donated_buffer = True

        return Entrant(
            run, lambda: self.check(provider, steps.results), {"operations": len(self.given), **info}
        )


def _faulty(f: Operator) -> Operator:
    return lambda *ts: f(*ts) * FAULT


@contextlib.contextmanager
def kept_buffers() -> Iterator[None]:
    """Have torch's compiler leave what a backward reads as it was, for a backward that is run again and
    again.

    Its caches do not know this setting: programs that they keep from elsewhere would overwrite it (the check
    saw gradients of 1e20).
    """
    with (
        torch._functorch.config.patch(donated_buffer=False),
        torch._inductor.config.patch(force_disable_caches=True),
    ):
        yield


def compiled(f: Operator) -> Operator:
    """Return ``f`` as torch.compile makes it. Its own CUDA graphs are off because a round is one already.
    Raises Unavailable.
    """
    if reason := why_not_compiled(torch.device(DEVICE)):
        raise Unavailable(reason)
    mode = "default"
    if DEVICE == "cuda":
        mode = "max-autotune-no-cudagraphs"
    return torch.compile(f, dynamic=False, fullgraph=True, mode=mode)


def copies(bytes_each: int, count: int) -> Entrant:
    """Return a copy that moves ``bytes_each`` in all, read and written, from and to ``count`` places in turn:
    the rate to compare with.
    """
    size = max(bytes_each // 8, 1)
    buffers = [torch.empty(2, size, dtype=torch.float32, device=DEVICE) for _ in range(count)]
    steps = Steps(lambda: [partial(b[1].copy_, b[0]) for b in buffers], DEVICE)
    return Entrant(steps, info={"operations": count, "bytes": count * 8 * size})


def products(dtype: torch.dtype) -> Entrant:
    """Return a large square matrix product: the rate to compare with."""
    size = MATRIX[DEVICE]
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    steps = Steps(lambda: [lambda: a @ b], DEVICE)
    return Entrant(steps, info={"operations": 1, "flops": 2 * size**3})


def channels_last(*size: int, dtype: torch.dtype) -> Tensor:
    """Return random numbers of mean 0 and deviation 1."""
    return torch.randn(size, device=DEVICE, dtype=dtype).contiguous(memory_format=torch.channels_last)
