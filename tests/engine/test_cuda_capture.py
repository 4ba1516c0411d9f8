"""If a capture fails, at any point, the previous state is restored and the first error is raised.

CUDA is replaced by a stand-in (fake_cuda.py).
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
    """Break the active capture and raise ``error``."""
    drawing(cuda)
    torch.rand(3)
    cuda.current.broken = True
    raise error


def leaves_another_stream(cuda: FakeCuda) -> Tensor:
    cuda.current = Stream()
    raise ValueError("on another stream")


def draws_outside(cuda: FakeCuda) -> Tensor:
    """Draw on a stream outside the capture. Since torch 2.13 this advances the generator before it raises."""
    with contextlib.suppress(RuntimeError), cuda.on(Stream()):
        cuda.generator.draw()
    return broken(cuda, RuntimeError(ITEM))


def does_not_join(cuda: FakeCuda) -> Tensor:
    cuda.current.broken = True
    return torch.ones(1)


def raises(error: BaseException) -> Callable[[FakeCuda], Tensor]:
    def step(cuda: FakeCuda) -> Tensor:
        drawing(cuda)
        raise error

    return step


# (stage at which the capture fails, injected errors, captured step, expected error)
FAILURES: list[tuple[str, dict[str, Exception], Callable[[FakeCuda], Tensor], BaseException]] = [
    (
        "before the capture",
        {"synchronize": RuntimeError("an earlier error")},
        drawing,
        RuntimeError("an earlier error"),
    ),
    (
        "at the beginning, before allocation",
        {"before the pool": RuntimeError("the default stream")},
        drawing,
        RuntimeError("the default stream"),
    ),
    (
        "at the beginning, during allocation",
        {"begin": RuntimeError("already capturing")},
        drawing,
        RuntimeError("already capturing"),
    ),
    (
        "in a step that leaves the capture intact",
        {},
        raises(ValueError("raised by the step")),
        ValueError("raised by the step"),
    ),
    (
        "in a step that breaks the capture",
        {},
        lambda cuda: broken(cuda, RuntimeError(ITEM)),
        RuntimeError(ITEM),
    ),
    (
        "in a step that leaves another stream current",
        {},
        leaves_another_stream,
        ValueError("on another stream"),
    ),
    ("in a step that draws outside the capture", {}, draws_outside, RuntimeError(ITEM)),
    ("at the end, because work was not joined", {}, does_not_join, RuntimeError(PREVIOUS)),
    (
        "at the end, after allocation",
        {"no graph": RuntimeError("Invalid capture.")},
        drawing,
        RuntimeError("Invalid capture."),
    ),
    (
        "while the graph is instantiated",
        {"instantiate": RuntimeError("out of memory")},
        drawing,
        RuntimeError("out of memory"),
    ),
    ("an interrupt", {}, raises(KeyboardInterrupt()), KeyboardInterrupt()),
    (
        "an interrupt that breaks the capture",
        {},
        lambda cuda: broken(cuda, KeyboardInterrupt()),
        KeyboardInterrupt(),
    ),
]
IDS = [row[0] for row in FAILURES]


@pytest.mark.parametrize("earlier", [False, True], ids=["the first graph", "after another graph"])
@pytest.mark.parametrize(("stage", "planted", "step", "raised"), FAILURES, ids=IDS)
def test_a_failed_capture_changes_no_state(
    cuda: FakeCuda,
    stage: str,
    planted: dict[str, Exception],
    step: Callable[[FakeCuda], Tensor],
    raised: BaseException,
    earlier: bool,
) -> None:
    capture = CudaCapture(cuda.stream)
    replay = capture(lambda: drawing(cuda))[0] if earlier else None
    state, offset, host_state = cuda.generator.state, cuda.generator.state.offset, torch.get_rng_state()
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
    # Each pool is used by as many graphs as before.
    assert +cuda.uses == uses
    cuda.pin()
    assert torch.equal(torch.get_rng_state(), host_state)
    # This must be the same object, because an earlier graph draws from it too.
    assert cuda.generator.state is state
    assert cuda.generator.draw() == (7, offset + 4)
    if replay is not None:
        replay()
        assert cuda.generator.draw() == (7, offset + 12)
    replay_again, _ = capture(lambda: drawing(cuda))
    before = cuda.generator.state.offset
    replay_again()
    assert cuda.generator.state.offset == before + 4


def test_a_pending_error_is_not_reported_by_later_work(cuda: FakeCuda) -> None:
    def step() -> Tensor:
        cuda.pending = [RuntimeError("from a library, inside the capture")]
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaCapture(cuda.stream)(step)
    torch.zeros(1)


def test_random_numbers_can_be_drawn_even_if_no_capture_succeeds(cuda: FakeCuda) -> None:
    """After a failure, another capture takes the generator out of capturing mode, and may fail as well."""

    def step() -> Tensor:
        cuda.fails["begin"] = RuntimeError("no captures today")
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        CudaCapture(cuda.stream)(step)
    assert cuda.routes == {}
    assert +cuda.uses == {}
    assert cuda.current is cuda.main
    assert cuda.generator.draw() == (7, 44)


def test_a_capture_that_cannot_be_undone_raises_not_restored(cuda: FakeCuda) -> None:
    cuda.fails["end of the allocation"] = RuntimeError("something new")
    with pytest.raises(
        NotRestoredError,
        match="could not be undone \\(RuntimeError: something new\\); train with --graph off",
    ) as caught:
        CudaCapture(cuda.stream)(lambda: broken(cuda, RuntimeError(ITEM)))
    assert str(caught.value.__cause__) == ITEM


def test_graphs_share_a_pool_while_one_of_them_exists(cuda: FakeCuda) -> None:
    """A pool whose graphs are all gone cannot be used again, because its memory may still be in use."""
    capture = CudaCapture(cuda.stream)
    graphs = [capture(lambda: drawing(cuda)) for _ in range(3)]
    assert sorted((+cuda.uses).values()) == [3]
    graphs.clear()
    gc.collect()
    assert +cuda.uses == {}
    graphs.append(capture(lambda: drawing(cuda)))
    assert sorted((+cuda.uses).values()) == [1]


def test_a_lost_device_raises_not_restored(cuda: FakeCuda) -> None:
    def step() -> Tensor:
        cuda.pending = [RuntimeError("an illegal address")] * 2
        return broken(cuda, RuntimeError(ITEM))

    with pytest.raises(NotRestoredError, match="an illegal address"):
        CudaCapture(cuda.stream)(step)
    assert cuda.current is cuda.main


class PlantedError(RuntimeError):
    """An error that supports weak references."""


def test_tensors_of_a_failed_step_are_freed_immediately(cuda: FakeCuda) -> None:
    """The tensors are in the graph's memory pool, so freeing them must not wait for the garbage collector."""
    watched: list[weakref.ref[Any]] = []

    def step() -> Tensor:
        big, error = torch.ones(1000), PlantedError()
        watched.extend((weakref.ref(big), weakref.ref(error)))
        return broken(cuda, error)

    def run() -> None:
        try:
            CudaCapture(cuda.stream)(step)
        except PlantedError:
            assert watched[0]() is None, "the traceback keeps the tensors of the step"

    gc.disable()
    try:
        run()
        assert watched[1]() is None, "the error refers to itself"
    finally:
        gc.enable()
