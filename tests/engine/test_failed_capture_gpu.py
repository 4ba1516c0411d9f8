"""A real capture that fails on a GPU does not affect memory, random numbers or training."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.config import EngineConfig, LossConfig
from fastcyclegan.engine import Engine
from fastcyclegan.engine.cuda_capture import CudaCapture
from fastcyclegan.errors import UserError
from fastcyclegan.testing import make_engine, seeded_networks
from tests.engine.test_cuda_graph import GRAPH, SMALL, assert_same_bits, batches, train


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def reads_back(engine: Engine) -> None:
    engine.host_inputs.lr.item()


def waits(engine: Engine) -> None:
    torch.cuda.synchronize()


def raises(engine: Engine) -> None:
    """Raise an error that leaves the capture itself intact."""
    raise ValueError("raised by the step")


def does_not_join(engine: Engine) -> None:
    """Use a stream and do not join it, which makes the end of the capture fail."""
    streams = engine.streams
    used = (streams.iteration, streams.weight_gradients, streams.phase)
    # PyTorch hands out 32 streams in turn.
    stray = next(stream for stream in (torch.cuda.Stream() for _ in range(32)) if stream not in used)
    stray.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stray):
        engine.host_inputs.lr + 1


# (action that makes a capture fail, reason that is reported)
PLANTS = [
    (reads_back, "operation not permitted when stream is capturing"),
    (waits, "operation not permitted when stream is capturing"),
    (raises, "ValueError: raised by the step"),
    (does_not_join, "unjoined work"),
]


def plant(engine: Engine, action: Callable[[Engine], None]) -> None:
    """Make each phase's update perform ``action`` while it is captured.

    At that point weight gradients are being computed on a separate stream.
    """
    update = engine._update

    def planted(*args: Any) -> None:
        if torch.cuda.is_current_stream_capturing():
            action(engine)
        update(*args)

    engine._update = planted  # type: ignore[method-assign]


def private_pools() -> set[tuple[int, int]]:
    """Return the pools of graphs that still occupy device memory."""
    gc.collect()
    torch.cuda.empty_cache()
    return {tuple(segment["segment_pool_id"]) for segment in torch.cuda.memory_snapshot()} - {(0, 0)}


def pool_of(tensor: Tensor) -> tuple[int, int]:
    address = tensor.data_ptr()
    segments = torch.cuda.memory_snapshot()
    return next(
        tuple(s["segment_pool_id"])
        for s in segments
        if s["address"] <= address < s["address"] + s["total_size"]
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("overlap", ["off", "wgrad", "phases"])
@pytest.mark.parametrize(("action", "reason"), PLANTS, ids=[row[0].__name__ for row in PLANTS])
def test_training_continues_after_a_real_failure(
    action: Callable[[Engine], None], reason: str, overlap: str
) -> None:
    """The networks have dropout, so every iteration draws from the device's random generator."""
    start = seeded_networks(dataclasses.replace(SMALL, ngf=16, ndf=16, use_dropout=True))
    options = EngineConfig(graph="on", overlap=overlap)
    data = [
        dataclasses.replace(b, A=b.A.cuda(), B=b.B.cuda()) for b in batches(10, size=32, dtype=torch.float32)
    ]
    logged: list[str] = []

    def engine_of(options: EngineConfig, **arguments: Any) -> Engine:
        return make_engine(
            start, LossConfig(pool_size=4), device="cuda", precision="bf16", options=options, **arguments
        )

    def run(engine: Engine) -> tuple[Tensor, Tensor]:
        torch.manual_seed(5)
        return train(engine, data), torch.rand(4, device="cuda")

    before = private_pools()
    engine = engine_of(options, log=logged.append)
    plant(engine, action)
    assert engine.graphs is not None
    engine.graphs._required = False
    plain = engine_of(dataclasses.replace(options, graph="off"))
    actual, expected = run(engine), run(plain)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1]), (
        "later random numbers differ from those of a run without the attempt"
    )
    assert_same_bits(engine, plain)
    (report,) = [line for line in logged if line.startswith("no CUDA graph")]
    assert reason in report
    assert pool_of(torch.empty(2**24, device="cuda")) == (
        0,
        0,
    ), "memory is still allocated for the failed graph"
    assert private_pools() <= before, "the memory of the failed graph was not released"
    another = engine_of(options)
    assert torch.equal(run(another)[0], expected[0])
    assert another.graphs is not None
    assert another.graphs.captured == 1


@pytest.mark.gpu
def test_a_required_graph_that_fails_on_a_gpu_reports_the_reason() -> None:
    engine = make_engine(seeded_networks(SMALL), device="cuda", precision="bf16", options=GRAPH)
    plant(engine, reads_back)
    data = [
        dataclasses.replace(b, A=b.A.cuda(), B=b.B.cuda()) for b in batches(8, size=32, dtype=torch.float32)
    ]
    with pytest.raises(
        UserError,
        match=(r"--graph on: the iteration cannot be captured: .*operation not permitted when stream"),
    ):
        train(engine, data)
    assert torch.rand(4, device="cuda").shape == (4,)


@pytest.mark.gpu
@pytest.mark.parametrize("broken_by", ["item", "an error", "an interrupt"])
def test_an_earlier_graph_still_draws_the_expected_numbers(broken_by: str) -> None:
    capture, out = CudaCapture(torch.cuda.Stream()), torch.zeros(4, device="cuda")
    warm = torch.rand(4, device="cuda")

    def fails() -> Tensor:
        drawn = torch.rand(4, device="cuda")
        if broken_by == "item":
            drawn.sum().item()
        raise ValueError("planted") if broken_by == "an error" else KeyboardInterrupt

    torch.manual_seed(3)
    expected = [torch.rand(4, device="cuda") for _ in range(4)]
    torch.manual_seed(3)
    replay, _ = capture(lambda: out.copy_(torch.rand(4, device="cuda")))
    actual = []
    for n in range(2):
        replay()
        actual.append(out.clone())
        if n == 0:
            current = torch.cuda.current_stream()
            with pytest.raises((RuntimeError, ValueError, KeyboardInterrupt)):
                capture(fails)
            assert torch.cuda.current_stream() == current
    actual.append(torch.rand(4, device="cuda"))
    replay_again, _ = capture(lambda: out.copy_(torch.rand(4, device="cuda")))
    replay_again()
    actual.append(out.clone())
    assert torch.equal(torch.stack(actual), torch.stack(expected))
    assert not torch.equal(warm, actual[0])
