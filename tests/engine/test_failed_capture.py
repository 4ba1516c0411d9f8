"""Training continues after a failed capture as if none had been tried, and the reason is logged once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.config import LossConfig
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.engine.cuda_capture import CudaCapture, NotRestoredError
from fastcyclegan.errors import UserError
from fastcyclegan.testing import make_engine, seeded_networks
from tests.engine.fake_cuda import FakeCuda
from tests.engine.test_cuda_capture import ITEM, broken, cuda
from tests.engine.test_cuda_graph import GRAPH, PLAIN, SMALL, assert_same_bits, batches, train

__all__ = ["cuda"]  # a fixture


class Failing:
    """A capture with ``CudaCapture`` that fails at the end of the iteration.

    The iteration is only recorded, so it has no effects.
    """

    def __init__(self, cuda: FakeCuda, error: BaseException) -> None:
        self.cuda, self.error, self.attempts = cuda, error, 0
        self.capture = CudaCapture(cuda.stream)

    def __call__(self, step: Callable[[], Tensor]) -> Any:
        self.attempts += 1

        def fails() -> Tensor:
            RecordedGraph()(step)
            return broken(self.cuda, self.error)

        return self.capture(fails)


def failing(cuda: FakeCuda, error: BaseException, required: bool) -> tuple[Engine, Failing, list[str]]:
    logged: list[str] = []
    capture = Failing(cuda, error)
    nets = seeded_networks(SMALL, dtype=torch.float64)
    engine = make_engine(
        nets, LossConfig(gan_mode="wgangp", pool_size=4), options=GRAPH, capture=capture, log=logged.append
    )
    assert engine.graphs is not None
    engine.graphs._required = required
    return engine, capture, logged


def test_training_after_a_failed_capture_equals_plain_training(cuda: FakeCuda) -> None:
    engine, capture, logged = failing(cuda, RuntimeError(f"{ITEM}\nmore"), required=False)
    plain = make_engine(
        seeded_networks(SMALL, dtype=torch.float64), LossConfig(gan_mode="wgangp", pool_size=4), options=PLAIN
    )
    data = batches(10, batch=3)
    torch.manual_seed(1)
    losses = train(engine, data)
    torch.manual_seed(1)
    assert torch.equal(losses, train(plain, data))
    assert_same_bits(engine, plain)
    assert logged == [
        f"no CUDA graph: the iteration cannot be captured (RuntimeError: {ITEM}); training continues without"
        " a graph"
    ]
    assert capture.attempts == 1
    assert cuda.generator.draw() == (7, 44)


class SecondFails(RecordedGraph):
    """A capture that succeeds for the first batch size and fails for the second."""

    calls = 0

    def __call__(self, step: Callable[[], Tensor]) -> Any:
        self.calls += 1
        captured = super().__call__(step)
        if self.calls == 2:
            raise RuntimeError(ITEM)
        return captured


def test_earlier_graphs_are_dropped_after_a_failure() -> None:
    logged: list[str] = []
    start, capture = seeded_networks(SMALL, dtype=torch.float64), SecondFails()
    engine = make_engine(start, options=GRAPH, capture=capture, log=logged.append)
    assert engine.graphs is not None
    engine.graphs._required = False
    data = batches(14, batch=3)
    assert torch.equal(train(engine, data), train(make_engine(start, options=PLAIN), data))
    assert capture.replays > 0
    assert engine.graphs.captured == 0
    assert len(logged) == 1


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (
            RuntimeError(ITEM),
            UserError,
            f"--graph on: the iteration cannot be captured: RuntimeError: {ITEM}",
        ),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=["an error", "an interrupt"],
)
def test_a_required_capture_that_fails_ends_the_run(
    cuda: FakeCuda, error: BaseException, raised: type[BaseException], text: str
) -> None:
    engine, _, logged = failing(cuda, error, required=True)
    with pytest.raises(raised) as caught:
        train(engine, batches(10))
    assert str(caught.value) == text
    assert logged == []
    assert cuda.generator.draw() == (7, 44)


def test_a_capture_that_cannot_be_undone_ends_the_run(cuda: FakeCuda) -> None:
    engine, _, logged = failing(cuda, RuntimeError(ITEM), required=False)
    cuda.fails["end of the allocation"] = RuntimeError("something new")
    with pytest.raises(NotRestoredError, match="something new"):
        train(engine, batches(10))
    assert logged == []
