"""Which calls are captured, which graphs are kept, and what happens when a capture fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine.cuda_capture import NotRestoredError
from fastcyclegan.inference import size_graphs
from fastcyclegan.inference.size_graphs import SizeGraphs, settings_of_convolutions


def images(size: int, fill: float = 1.0) -> Tensor:
    return torch.full((1, 3, size, size), fill)


class Doubling:
    """A step that counts how often it ran itself, rather than as a graph."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        self.runs.append(x.shape[-1])
        return x * 2 if keys is None else x * 2 + keys


def run(graphs: SizeGraphs, step: Doubling, *sizes: int) -> None:
    for number, size in enumerate(sizes):
        result = graphs.run(step, images(size, number))
        assert torch.equal(result, images(size, 2 * number))


def test_a_size_is_captured_when_it_comes_again() -> None:
    step, capture = Doubling(), RecordedGraph()
    graphs = SizeGraphs(capture, pytest.fail)
    run(graphs, step, 8, 9, 10)
    assert (graphs.captured, capture.replays) == (0, 0)
    run(graphs, step, 8, 8, 8)
    assert (graphs.captured, capture.replays) == (1, 3)
    assert step.runs == [8, 9, 10, 8]  # the last run was recorded


def test_other_settings_dtypes_and_batches_need_other_graphs() -> None:
    step = Doubling()
    graphs = SizeGraphs(RecordedGraph(), pytest.fail)
    for _ in range(3):
        graphs.run(step, images(8), "one")
        graphs.run(step, images(8), "other")
        assert graphs.run(step, images(8).double(), "one").dtype == torch.float64
        assert graphs.run(step, images(8).repeat(2, 1, 1, 1), "one").shape[0] == 2
    assert graphs.captured == 4
    before = settings_of_convolutions()
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        assert settings_of_convolutions() != before


def test_the_least_recently_used_graph_gives_way_once_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_graphs, "MAX_GRAPHS", 2)
    monkeypatch.setattr(size_graphs, "UNUSED_CALLS", 4)
    step, capture = Doubling(), RecordedGraph()
    graphs = SizeGraphs(capture, pytest.fail)
    run(graphs, step, 8, 9, 8, 9)
    assert graphs.captured == 2
    step.runs.clear()
    run(graphs, step, 10, 8, 9, 10, 8, 9, 10)
    assert step.runs == [10, 10, 10]  # sizes that alternate do not displace one another
    run(graphs, step, 9, 9, 9)
    step.runs.clear()
    run(graphs, step, 10, 10, 9)  # captured in place of 8
    assert (step.runs, graphs.captured) == ([10], 2)
    run(graphs, step, 8)
    assert (step.runs, graphs.captured) == ([10, 8], 2)
    run(graphs, step, 10, 10, 10, 8, 8)  # back, in place of 9
    assert (step.runs, graphs.captured) == ([10, 8, 8], 2)


def test_only_so_many_sizes_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_graphs, "REMEMBERED", 3)
    graphs = SizeGraphs(RecordedGraph(), pytest.fail)
    run(graphs, Doubling(), *range(8, 40))
    assert len(graphs._seen) == 3


def test_large_and_empty_batches_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_graphs, "MAX_PIXELS", 64)
    step, graphs = Doubling(), SizeGraphs(RecordedGraph(), pytest.fail)
    run(graphs, step, 9, 9, 9, 0, 0, 0, 8, 8)
    assert graphs.captured == 1


class Failing(RecordedGraph):
    """Refuses to capture after ``good`` captures, with the step half done."""

    def __init__(self, good: int, error: BaseException) -> None:
        super().__init__()
        self.good, self.error = good, error

    def __call__(self, step: Callable[[], Tensor]) -> Any:
        if self.good == 0:
            super().__call__(step)
            raise self.error
        self.good -= 1
        return super().__call__(step)


@pytest.mark.parametrize("good", [0, 1])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("operation not permitted\nmore"), torch.OutOfMemoryError("CUDA out of memory")],
    ids=["not permitted", "memory"],
)
def test_a_failed_capture_is_logged_once_and_nothing_is_captured_any_more(
    good: int, error: Exception
) -> None:
    """Without memory for a graph, the call still runs; its own lack of memory is an error (below)."""
    logged: list[str] = []
    step, graphs = Doubling(), SizeGraphs(Failing(good, error), logged.append)
    run(graphs, step, 8, 8, 9, 9, 8, 9, 10, 10)
    assert graphs.captured == 0
    (line,) = logged
    reason = f"{type(error).__name__}: {str(error).replace(chr(10), ' ')}"
    assert line == (
        f"no CUDA graph: the network cannot be captured ({reason}); images are translated without a graph"
    )


def test_lack_of_memory_of_a_call_is_raised() -> None:
    def step(x: Tensor, keys: Tensor | None) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphs = SizeGraphs(RecordedGraph(), pytest.fail)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            graphs.run(step, images(8))
    assert graphs.captured == 0


def test_a_capture_that_cannot_be_undone_and_an_interrupt_are_raised() -> None:
    failure = NotRestoredError("train with --graph off")
    failure.__cause__ = RuntimeError("broken")
    graphs = SizeGraphs(Failing(0, failure), pytest.fail)
    graphs.run(Doubling(), images(8))
    message = r"could not be undone \(broken\); start the program again"
    with pytest.raises(NotRestoredError, match=message):
        graphs.run(Doubling(), images(8))
    graphs = SizeGraphs(Failing(0, KeyboardInterrupt()), pytest.fail)
    graphs.run(Doubling(), images(8))
    with pytest.raises(KeyboardInterrupt):
        graphs.run(Doubling(), images(8))


def test_the_keys_of_masks_are_read_anew_at_each_replay() -> None:
    step, graphs = Doubling(), SizeGraphs(RecordedGraph(), pytest.fail)
    images = torch.ones(1, 3, 4, 4)
    for number in range(4):
        result = graphs.run(step, images, (), torch.tensor([number]))
        assert torch.equal(result, torch.full_like(images, 2 + number))
    assert len(step.runs) == 2  # once by itself, and once to capture it
    assert torch.equal(graphs.run(step, images), torch.full_like(images, 2))
