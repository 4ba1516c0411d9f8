"""Captures that fail, wherever they do: all is as before, and the first reason is raised. CUDA is a stand-in
(fake_cuda.py).
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.engine.cuda_capture import CudaCapture, NotRestoredError
from tests.engine.fake_cuda import PREVIOUS, FakeCuda, Stream

ITEM = "CUDA error: operation not permitted when stream is capturing"


@pytest.fixture(params=[True, False], ids=["torch 2.11", "torch 2.13"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch, old=request.param)


def drawing(cuda: FakeCuda) -> Tensor:
    cuda.generator.draw()
    return torch.ones(1)


def broken(cuda: FakeCuda, error: BaseException) -> Tensor:
    """Do what no capture survives."""
    drawing(cuda)
    torch.rand(3)
    cuda.current.broken = True
    raise error


def astray(cuda: FakeCuda) -> Tensor:
    cuda.current = Stream()
    raise ValueError("on another stream")


def drawn_outside(cuda: FakeCuda) -> Tensor:
    """Draw on a stream that is no part of the capture: since torch 2.13 that moves the generator on, before
    it is an error.
    """
    with contextlib.suppress(RuntimeError), cuda.on(Stream()):
        cuda.generator.draw()
    return broken(cuda, RuntimeError(ITEM))


def unjoined(cuda: FakeCuda) -> Tensor:
    cuda.current.broken = True
    return torch.ones(1)


def fine_but(error: BaseException) -> Callable[[FakeCuda], Tensor]:
    def step(cuda: FakeCuda) -> Tensor:
        drawing(cuda)
        raise error

    return step


# (where it fails, what is planted, the step, what is raised)
FAILURES: list[tuple[str, dict[str, Exception], Callable[[FakeCuda], Tensor], BaseException]] = [
    (
        "before the capture",
        {"synchronize": RuntimeError("an error from before")},
        drawing,
        RuntimeError("an error from before"),
    ),
    (
        "as it begins, before it allocates",
        {"before the pool": RuntimeError("the default stream")},
        drawing,
        RuntimeError("the default stream"),
    ),
    (
        "as it begins, when it allocates",
        {"begin": RuntimeError("already capturing")},
        drawing,
        RuntimeError("already capturing"),
    ),
    (
        "in a step, the capture is still good",
        {},
        fine_but(ValueError("the step's own")),
        ValueError("the step's own"),
    ),
    (
        "in a step, the capture is broken",
        {},
        lambda cuda: broken(cuda, RuntimeError(ITEM)),
        RuntimeError(ITEM),
    ),
    ("in a step that leaves another stream current", {}, astray, ValueError("on another stream")),
    ("in a step that draws outside the capture", {}, drawn_outside, RuntimeError(ITEM)),
    ("as it ends: work that was not joined", {}, unjoined, RuntimeError(PREVIOUS)),
    (
        "as it ends, after the allocation",
        {"no graph": RuntimeError("Invalid capture.")},
        drawing,
        RuntimeError("Invalid capture."),
    ),
    (
        "as the graph is made",
        {"instantiate": RuntimeError("out of memory")},
        drawing,
        RuntimeError("out of memory"),
    ),
    ("interrupted", {}, fine_but(KeyboardInterrupt()), KeyboardInterrupt()),
    (
        "interrupted, the capture is broken",
        {},
        lambda cuda: broken(cuda, KeyboardInterrupt()),
        KeyboardInterrupt(),
    ),
]
WHERE = [row[0] for row in FAILURES]


@pytest.mark.parametrize("earlier", [False, True], ids=["the first graph", "after another"])
@pytest.mark.parametrize(("where", "planted", "step", "raised"), FAILURES, ids=WHERE)
def test_a_capture_that_fails_leaves_no_trace(
    cuda: FakeCuda,
    where: str,
    planted: dict[str, Exception],
    step: Callable[[FakeCuda], Tensor],
    raised: BaseException,
    earlier: bool,
) -> None:
    capture = CudaCapture(cuda.stream)
    replay = capture(lambda: drawing(cuda))[0] if earlier else None
    state, offset, host = cuda.generator.state, cuda.generator.state.offset, torch.get_rng_state()
    uses = +cuda.uses
    cuda.fails = dict(planted)
    with pytest.raises(type(raised)) as caught:
        capture(lambda: step(cuda))
    assert str(caught.value) == str(raised)
    del caught
    gc.collect()
    assert cuda.current is cuda.main
    assert not cuda.stream.capture
    assert cuda.routes == {}
    # What later becomes of memory: every pool is left to the graphs that were there before.
    assert +cuda.uses == uses
    cuda.pin()
    assert torch.equal(torch.get_rng_state(), host)
    # The very object: an earlier graph draws from it too.
    assert cuda.generator.state is state
    assert cuda.generator.draw() == (7, offset + 4)
    if replay is not None:
        replay()
        assert cuda.generator.draw() == (7, offset + 12)
    again, _ = capture(lambda: drawing(cuda))
    before = cuda.generator.state.offset
    again()
    assert cuda.generator.state.offset == before + 4


def test_an_error_that_nobody_asked_for_is_not_blamed_on_what_follows(cuda: FakeCuda) -> None:
    def step() -> Tensor:
        cuda.pending = [RuntimeError("from a library, inside the capture")]
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaCapture(cuda.stream)(step)
    torch.zeros(1)


def test_numbers_can_be_drawn_even_where_no_capture_succeeds(cuda: FakeCuda) -> None:
    """The capture that takes the generator out of its mode may fail as well."""

    def step() -> Tensor:
        cuda.fails["begin"] = RuntimeError("no captures today")
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaCapture(cuda.stream)(step)
    assert cuda.routes == {}
    assert +cuda.uses == {}
    assert cuda.current is cuda.main
    assert cuda.generator.draw() == (7, 44)


def test_what_cannot_be_undone_is_an_error_of_its_own(cuda: FakeCuda) -> None:
    cuda.fails["end of the allocation"] = RuntimeError("something new")
    with pytest.raises(
        NotRestoredError, match="cannot be undone \\(RuntimeError: something new\\): train with --graph off"
    ) as caught:
        CudaCapture(cuda.stream)(lambda: broken(cuda, RuntimeError(ITEM)))
    assert str(caught.value.__cause__) == ITEM


def test_graphs_share_a_pool_as_long_as_one_of_them_lives(cuda: FakeCuda) -> None:
    """A pool that all have left may not be begun again while its memory is in use."""
    capture = CudaCapture(cuda.stream)
    graphs = [capture(lambda: drawing(cuda)) for _ in range(3)]
    assert sorted((+cuda.uses).values()) == [3]
    graphs.clear()
    gc.collect()
    assert +cuda.uses == {}
    graphs.append(capture(lambda: drawing(cuda)))
    assert sorted((+cuda.uses).values()) == [1]


def test_a_device_that_is_lost_is_an_error_of_its_own(cuda: FakeCuda) -> None:
    def step() -> Tensor:
        cuda.pending = [RuntimeError("an illegal address")] * 2
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(NotRestoredError, match="an illegal address"):
        CudaCapture(cuda.stream)(step)
    assert cuda.current is cuda.main


class PlantedError(RuntimeError):
    """An error that can be watched."""


def test_what_a_failed_step_made_is_gone_at_once(cuda: FakeCuda) -> None:
    """And not when Python collects garbage: it is memory of the pool."""
    watched: list[weakref.ref[Any]] = []

    def step() -> Tensor:
        big, error = torch.ones(1000), PlantedError()
        watched.extend((weakref.ref(big), weakref.ref(error)))
        return broken(cuda, error)

    def caught() -> None:
        try:
            CudaCapture(cuda.stream)(step)
        except PlantedError:
            assert watched[0]() is None, "the traceback holds what the step made"

    gc.disable()
    try:
        caught()
        assert watched[1]() is None, "the error holds itself"
    finally:
        gc.enable()
